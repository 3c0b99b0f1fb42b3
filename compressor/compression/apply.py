"""Plan -> compressed weights: builds the compressor of each treatment and applies it."""

import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compressor.compression.calibration import Calibration, check_needs
from compressor.compression.checked_weight import CheckedWeight, check_compressed
from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    Offer,
    Plan,
    Treatment,
)
from compressor.contracts.guard import Guard, guard_iterator, name_plugin, show
from compressor.contracts.request_checks import is_number
from compressor.contracts.types import NoLevels
from compressor.errors import ConfigError, PlanError, PluginError, suggest
from compressor.models import Model, Replacement
from compressor.registry import Registry, build_options, option_names


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

    `calibration` holds the calibration data of the current model; None if none were gathered. `built` holds compressors
    with the options of treatments: many components have the same.
    """

    configured: Mapping[str, Compressor]
    installed: Registry[Compressor]
    seed: int = 0
    calibration: Calibration | None = None
    built: dict[str, Compressor] = field(default_factory=dict, init=False, repr=False)

    def resolve(self, treatment: Treatment) -> Compressor:
        """The compressor with the options of the treatment, else the configured ones, else the defaults."""
        if treatment.compressor in self.configured and not treatment.options:
            return self.configured[treatment.compressor]
        key = repr((treatment.compressor, sorted(treatment.options.items())))
        if key not in self.built:
            self.built[key] = self.build(treatment)
        return self.built[key]

    def build(self, treatment: Treatment) -> Compressor:
        """The compressor with the options of the treatment."""
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

    def compress(self, model: Model, plan: Plan) -> dict[str, CheckedWeight]:
        """Compress every component of the plan, from its weight before any round. The model does not change."""
        return {name: self.compress_one(model, name, treatment) for name, treatment in plan.items()}

    def compress_one(self, model: Model, name: str, treatment: Treatment) -> CheckedWeight:
        """The component's weight after its treatment."""
        check_names(model, [name])
        component = model.weight_views[name].component
        (compressed,) = self.compress_each(component, read_untreated(model, name), [treatment])
        return compressed

    @torch.no_grad()
    def compress_each(
        self, component: Component, weight: Tensor, treatments: Sequence[Treatment]
    ) -> Iterator[CheckedWeight]:
        """`weight` `[out, in]` after each treatment, in order. Amounts of one compressor may share work."""
        for _, group in itertools.groupby(treatments, lambda t: (t.compressor, t.options, t.rows is not None)):
            chosen = list(group)
            compressor = self.resolve(chosen[0])
            offer, context = read_offer(compressor, component), self.make_context(compressor, component, weight)
            given = Unchanged(compressor, component, [weight, *context.calibration.values()])
            for compressed in compress_alike(compressor, offer, weight, chosen, context):
                checked = check_compressed(compressor, component, compressed, weight)
                given.check()
                yield checked

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
                        f"{name_plugin(self.resolve(treatment))} gave another weight at a second call with the same "
                        f"input, on {name}; it must be the same: draw randomness from Context.seed"
                    )

    def sizes(
        self,
        model: Model,
        options: Mapping[str, Sequence[Treatment | None]],
        now: Mapping[str, int],
        measure: Callable[[str, CheckedWeight], int] = lambda name, made: made.bits,
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
        end: Any = object()
        for number in range(len(amounts)):
            if (compressed := next(results, end)) is end:
                raise PluginError(
                    f"`compress_each` of {name_plugin(compressor)} gave {number} results for {len(amounts)} amounts, "
                    f"on {component.name}; give one for each"
                )
            yield compressed
        if next(results, end) is not end:
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
    if flaw := find_offer_flaw(compressor, offer):
        raise PluginError(f"`offer` of {name_plugin(compressor)} gave {flaw[0]} for {component.name}; {flaw[1]}")
    return offer


def find_offer_flaw(compressor: Compressor, offer: object) -> tuple[str, str] | None:
    """What is wrong with an offer, and the rule."""
    if not isinstance(offer, Offer):
        return type(offer).__name__, "give an Offer"
    levels, by_row, ends = offer.levels, offer.by_row, (offer.low, offer.high)
    if not isinstance(levels, tuple) or not isinstance(by_row, bool):
        return f"{show(levels)} as `levels` and {show(by_row)} as `by_row`", "give a tuple and a bool"
    if not levels and not isinstance(levels, NoLevels):
        return f"{show(levels)} as `levels`", "give at least one, or leave `levels` out to offer a range"
    if levels and ends != (Offer.low, Offer.high):
        return f"the levels {show(levels)} and the range {show(ends)}", "give one of the two"
    amounts = levels or ends
    is_valid = all(is_number(amount) and 0.0 <= amount <= 1.0 for amount in amounts)
    if not is_valid or (len(set(amounts)) < len(amounts) if levels else offer.low > offer.high):
        return f"amounts {show(amounts)}", "they must be distinct, or a range from low to high, within [0, 1]"
    if by_row and type(compressor).compress_rows is Compressor.compress_rows:
        return "`by_row` True", "its class has no `compress_rows`, which that needs"
    return None


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


def make_replacement(compressed: CompressedWeight | CheckedWeight) -> Replacement:
    """The dense weight and the input transform, as the model takes them."""
    return Replacement(compressed.dense(), compressed.input_transform)
