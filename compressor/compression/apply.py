"""Plan -> compressed weights: builds the compressor of each treatment and applies it."""

import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.compression.calibration import Calibration, check_needs
from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    Offer,
    Plan,
    QuantizedMatrix,
    TokenRounding,
    Treatment,
)
from compressor.contracts.guard import Guard, guard_iterator, name_plugin, show
from compressor.errors import ConfigError, PlanError, PluginError, suggest
from compressor.models import Model, Replacement
from compressor.registry import Registry, build_options, option_names

MOST_BITS = 8
"""The most bits that a compressed weight may take, relative to those of the weight: more is a mistake."""


@dataclass
class Unchanged:
    """Tensors that a compressor was given for a component."""

    compressor: Compressor
    component: Component
    tensors: Sequence[Tensor]

    def __post_init__(self) -> None:
        self.versions = [tensor._version for tensor in self.tensors]

    def check(self) -> None:
        """Raise PluginError if one of the tensors was changed."""
        if [tensor._version for tensor in self.tensors] != self.versions:
            raise PluginError(
                f"{name_plugin(self.compressor)} changed the weight or the calibration data that it was given for "
                f"{self.component.name}; work on a copy"
            )


@dataclass
class Treatments:
    """The compressors of a run: those `configured`, by name, and all `installed` ones, which a plan may use.

    `calibration` holds the calibration data of the current model; None if none were gathered.
    """

    configured: Mapping[str, Compressor]
    installed: Registry[Compressor]
    seed: int = 0
    calibration: Calibration | None = None

    def resolve(self, treatment: Treatment) -> Compressor:
        """The compressor with the options of the treatment, else the configured ones, else the defaults."""
        if treatment.compressor in self.configured and not treatment.options:
            return self.configured[treatment.compressor]
        cls = self.installed[treatment.compressor]
        known = option_names(cls)
        for name in treatment.options:
            if name not in known:
                raise PlanError(f"unknown option `{name}` of compressor `{cls.name}`; {suggest(name, known)}")
        try:
            return cls(**build_options(cls, treatment.options))
        except (TypeError, ValueError) as error:
            raise PlanError(f"the options of compressor `{cls.name}` are not valid: {error}") from None

    def find_needs(self, compressors: Iterable[str]) -> frozenset[str]:
        """The calibration data that these compressors need; raises PluginError for data that no run gathers."""
        needs: set[str] = set()
        for name in set(compressors):
            compressor = self.configured.get(name) or self.installed[name]
            check_needs(compressor)
            needs |= compressor.needs
        return frozenset(needs)

    def is_sequential(self, treatment: Treatment) -> bool:
        """Whether it needs calibration data from a model whose earlier layers are compressed."""
        return bool(self.find_needs([treatment.compressor])) and self.resolve(treatment).sequential

    def make_context(self, compressor: Compressor, component: Component, weight: Tensor) -> Context:
        """The context for the compressor; raises PlanError if calibration data that it needs were not gathered."""
        if not compressor.needs:
            return Context(component, self.seed)
        found = None if self.calibration is None else self.calibration.read(component.name, compressor.needs)
        if found is None:
            raise PlanError(
                f"compressor `{compressor.name}` needs {', '.join(sorted(compressor.needs))} of `{component.name}`, "
                "which were not gathered; give Treatments a `calibration` by compressor.compression.calibration.gather"
            )
        return Context(component, self.seed, {name: tensor.to(weight.device) for name, tensor in found.items()})

    def fill_options(self, plan: Plan) -> dict[str, Treatment]:
        """The same plan with every option written out, so that it does not depend on this run's configuration."""
        filled = {}
        for name, treatment in plan.items():
            compressor = self.resolve(treatment)
            values = {name: getattr(compressor, name) for name in option_names(type(compressor))}
            plain = {name: value.name if isinstance(value, enum.Enum) else value for name, value in values.items()}
            filled[name] = dataclasses.replace(treatment, options=plain)
        return filled

    def offers(self, model: Model) -> dict[str, dict[str, Offer]]:
        """Compressor -> component -> offer, for the configured compressors."""
        return {
            name: {component.name: read_offer(compressor, component) for component in model.components.values()}
            for name, compressor in self.configured.items()
        }

    def compress(self, model: Model, plan: Plan) -> dict[str, CompressedWeight]:
        """Compress every component of the plan, from its weight before any round. The model does not change."""
        return {name: self.compress_one(model, name, treatment) for name, treatment in plan.items()}

    def compress_one(self, model: Model, name: str, treatment: Treatment) -> CompressedWeight:
        """The component's weight after its treatment."""
        check_names(model, [name])
        component = model.weight_views[name].component
        (compressed,) = self.compress_each(component, read_untreated(model, name), [treatment])
        return compressed

    @torch.no_grad()
    def compress_each(
        self, component: Component, weight: Tensor, treatments: Sequence[Treatment]
    ) -> Iterator[CompressedWeight]:
        """`weight` `[out, in]` after each treatment, in order. Amounts of one compressor may share work."""
        for _, group in itertools.groupby(treatments, lambda t: (t.compressor, t.options, t.rows is not None)):
            chosen = list(group)
            compressor = self.resolve(chosen[0])
            offer, context = read_offer(compressor, component), self.make_context(compressor, component, weight)
            given = Unchanged(compressor, component, [weight, *context.calibration.values()])
            for compressed in compress_alike(compressor, offer, weight, chosen, context):
                check_compressed(compressor, component, compressed, weight)
                given.check()
                yield compressed

    def check_repeatable(self, model: Model, options: Mapping[str, Sequence[Treatment | None]]) -> None:
        """Raise PluginError for a compressor that gives different results for the same input, on one component."""
        tried: set[str] = set()
        for name, choices in sorted(options.items(), key=lambda item: model.components[item[0]].parameters):
            for treatment in choices:
                if treatment is None or treatment.compressor in tried or not treatment.amount:
                    continue
                tried.add(treatment.compressor)
                first, second = (self.compress_one(model, name, treatment).dense() for _ in range(2))
                if not torch.equal(first, second):
                    raise PluginError(
                        f"compressor `{treatment.compressor}` gives a different weight each time, on {name}; "
                        "estimates need the same weight: draw its randomness from Context.seed"
                    )

    def sizes(
        self,
        model: Model,
        options: Mapping[str, Sequence[Treatment | None]],
        now: Mapping[str, int],
        measure: Callable[[str, CompressedWeight], int] = lambda name, made: made.bits,
    ) -> dict[str, list[int]]:
        """Bits of each option, by `measure` (default: packed bits with scales).

        `now` has the current bits of components; a component without an entry has the bits of the checkpoint.
        """
        answer = {}
        for name, choices in options.items():
            component = model.components[name]
            stored = now.get(name, component.parameters * component.stored_bits)
            treatments = [treatment for treatment in choices if treatment is not None]
            made = self.compress_each(component, read_untreated(model, name), treatments)
            answer[name] = [stored if treatment is None else measure(name, next(made)) for treatment in choices]
        return answer

    def count(self, model: Model, compressor: str, thresholds: Sequence[float]) -> dict[str, list[int]]:
        """Counts of each component's weights with importance of at most each threshold (`thresholds` increase)."""
        limits = torch.tensor(list(thresholds), dtype=torch.float64)
        counts = {}
        for name, component in model.components.items():
            chosen, weight = self.configured[compressor], read_untreated(model, name)
            context = self.make_context(chosen, component, weight)
            given = Unchanged(chosen, component, [weight, *context.calibration.values()])
            importance = chosen.importance(weight, context)
            given.check()
            if importance is None:
                raise ConfigError(
                    f"compressor `{compressor}` does not rank single weights, which this schedule needs; "
                    "use a pruner such as magnitude"
                )
            check_importance(chosen, name, importance, weight)
            # Each weight is counted in the first bucket whose limit it does not exceed.
            buckets = torch.bucketize(importance.double().flatten().cpu(), limits)
            counts[name] = torch.bincount(buckets, minlength=len(limits) + 1)[:-1].cumsum(0).tolist()
        return counts


def compress_alike(
    compressor: Compressor, offer: Offer, weight: Tensor, treatments: Sequence[Treatment], context: Context
) -> Iterator[CompressedWeight]:
    """`weight` after each of these treatments by one compressor, all with an amount for each row or all without."""
    component = context.component
    if treatments[0].rows is None:
        for treatment in treatments:
            offer.require(treatment.amount, compressor.name, component)
        amounts = [treatment.amount for treatment in treatments]
        given = compressor.compress_each(weight, list(amounts), context)
        if not isinstance(given, Iterable):
            raise PluginError(
                f"`compress_each` of {name_plugin(compressor)} gave {type(given).__name__} for {component.name}; give "
                "a compressed weight for each amount"
            )
        guard = Guard(compressor, "compress_each", component.name)
        if isinstance(given, Iterator):  # its methods are guarded already, by the one that fails
            results = given
        else:
            with guard:
                results = guard_iterator(iter(given), guard)
        for number in range(len(amounts)):
            if (compressed := next(results, None)) is None:
                raise PluginError(
                    f"`compress_each` of {name_plugin(compressor)} gave {number} results for {len(amounts)} amounts, "
                    f"on {component.name}; give one for each"
                )
            yield compressed
        if next(results, None) is not None:
            raise PluginError(
                f"`compress_each` of {name_plugin(compressor)} gave more results than the {len(amounts)} amounts, on "
                f"{component.name}; give one for each"
            )
        return
    for treatment in treatments:
        rows = treatment.rows or ()
        offer.require_rows(rows, compressor.name, component)
        yield compressor.compress_rows(weight, rows, context)


def read_untreated(model: Model, name: str) -> Tensor:
    """The weight `[out, in]` that treatments start from: the base's, because treatments replace one another."""
    return model.held[name].to(model.device, copy=True) if name in model.held else model.read(name)


def check_names(model: Model, names: Iterable[str]) -> None:
    """Raise PlanError for a name that is not a component of the model."""
    for name in names:
        if name not in model.weight_views:
            raise PlanError(f"unknown component `{name}`; {suggest(name, model.weight_views)}")


def read_offer(compressor: Compressor, component: Component) -> Offer:
    """The offer for a component; raises PluginError for one that holds no amounts in [0, 1]."""
    offer = compressor.offer(component)
    if not isinstance(offer, Offer):
        raise PluginError(
            f"`offer` of {name_plugin(compressor)} gave {type(offer).__name__} for {component.name}; give an Offer"
        )
    if not isinstance(offer.levels, tuple) or not isinstance(offer.by_row, bool):
        raise PluginError(
            f"`offer` of {name_plugin(compressor)} gave {show(offer.levels)} as `levels` and {show(offer.by_row)} as "
            f"`by_row` for {component.name}; give a tuple and a bool"
        )
    amounts = (offer.low, offer.high) if offer.is_range else offer.levels
    is_valid = all(isinstance(amount, int | float) and 0.0 <= amount <= 1.0 for amount in amounts)
    if not is_valid or (offer.low > offer.high if offer.is_range else len(set(amounts)) < len(amounts)):
        raise PluginError(
            f"`offer` of {name_plugin(compressor)} gave amounts {show(amounts)} for {component.name}; they must be "
            "distinct, or a range from low to high, within [0, 1]"
        )
    return offer


def check_compressed(compressor: Compressor, component: Component, compressed: object, weight: Tensor) -> None:
    """Raise PluginError for a compressed weight that cannot stand in for `weight`."""
    owner, name = name_plugin(compressor), component.name
    if not isinstance(compressed, CompressedWeight):
        raise PluginError(f"{owner} gave {type(compressed).__name__} for {name}; give a CompressedWeight")
    with Guard(compressor, "dense", name):
        dense, bits, transform = compressed.dense(), compressed.bits, compressed.input_transform
        quantized = compressed.quantized
    if not isinstance(dense, Tensor) or dense.shape != weight.shape or dense.dtype != weight.dtype:
        found = f"{tuple(dense.shape)} {dense.dtype}" if isinstance(dense, Tensor) else type(dense).__name__
        raise PluginError(
            f"{owner} gave a dense value that is {found} for {name}, the weight is {tuple(weight.shape)} {weight.dtype}"
        )
    if dense.layout is not torch.strided or dense.device != weight.device:
        raise PluginError(
            f"{owner} gave a dense value that is {dense.layout} on {dense.device} for {name}; the weight is "
            f"{weight.layout} on {weight.device}"
        )
    if not is_finite(dense):
        raise PluginError(f"{owner} gave a dense value that holds NaN or infinity for {name}; mend it")
    most = MOST_BITS * max(component.stored_bits, 8 * weight.itemsize) * component.parameters
    if isinstance(bits, bool) or not isinstance(bits, int) or not 0 <= bits <= most:
        raise PluginError(f"{owner} gave {bits!r} as the `bits` of {name}; give a whole number in [0, {most}]")
    if transform is not None and not callable(transform):
        raise PluginError(f"{owner} gave {show(transform)} as `input_transform` of {name}; give a function or None")
    if transform is not None and compressor.transforms_inputs is not True:
        raise PluginError(
            f"{owner} gave a weight with an `input_transform` for {name}, so `transforms_inputs` must be True"
        )
    if quantized is not None and not isinstance(quantized, QuantizedMatrix):
        raise PluginError(
            f"{owner} gave {type(quantized).__name__} as `quantized` of {name}; give a QuantizedMatrix or None"
        )
    if quantized is not None and (flaw := find_flaw(quantized, weight)):
        raise PluginError(f"{owner} gave a `quantized` of {name} whose {flaw}")


def find_flaw(matrix: QuantizedMatrix, weight: Tensor) -> str | None:
    """What is wrong with the form of a quantized matrix, and the rule; its numbers are compared by an export."""
    bits, group, scales = matrix.integer_bits, matrix.group, matrix.scales
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        return f"`integer_bits` is {show(bits)}; integers have 1 to 8 bits"
    if isinstance(group, bool) or not isinstance(group, int) or group < 0:
        return f"`group` is {show(group)}; give a number of weights, or 0 for a whole row"
    if not isinstance(matrix.integers, Tensor) or matrix.integers.shape != weight.shape:
        return f"`integers` are {describe_form(matrix.integers)}; a tensor {tuple(weight.shape)} is needed"
    if matrix.integers.dtype != torch.int8:
        return f"`integers` are {matrix.integers.dtype}; give int8"
    widths = {rows: weight.numel() // rows for rows in (len(weight), 1)}  # a scale for each row, or for the matrix
    forms = {(rows, -(-width // (min(group, width) or width))) for rows, width in widths.items()}
    if not isinstance(scales, Tensor) or tuple(scales.shape) not in forms or not scales.is_floating_point():
        return f"`scales` are {describe_form(scales)}; floats {' or '.join(map(str, sorted(forms)))} are needed"
    if matrix.zeros is not None and (not isinstance(matrix.zeros, Tensor) or matrix.zeros.shape != scales.shape):
        return f"`zeros` are {describe_form(matrix.zeros)}; a tensor {tuple(scales.shape)} or None is needed"
    if matrix.input_rounding is not None and not isinstance(matrix.input_rounding, TokenRounding):
        return f"`input_rounding` is {show(matrix.input_rounding)}; give a TokenRounding or None"
    return None


def describe_form(value: object) -> str:
    """The shape and dtype of a tensor, or the type of anything else."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def check_importance(compressor: Compressor, component: str, importance: object, weight: Tensor) -> None:
    """Raise PluginError unless the importance has a number for each weight."""
    owner = name_plugin(compressor)
    if not isinstance(importance, Tensor) or importance.shape != weight.shape:
        found = tuple(importance.shape) if isinstance(importance, Tensor) else type(importance).__name__
        raise PluginError(
            f"`importance` of {owner} is {found} for {component}; a tensor {tuple(weight.shape)} is needed"
        )
    if importance.layout is not torch.strided or importance.device != weight.device or importance.is_complex():
        raise PluginError(
            f"`importance` of {owner} is {importance.dtype}, {importance.layout}, on {importance.device} for "
            f"{component}; real, dense numbers on {weight.device} are needed"
        )
    if importance.isnan().any():
        raise PluginError(f"`importance` of {owner} holds NaN for {component}; mend it")


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. A finite sum proves it, and is much faster to compute."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def make_replacement(compressed: CompressedWeight) -> Replacement:
    """The dense weight and the input transform, as the model takes them."""
    return Replacement(compressed.dense(), compressed.input_transform)
