"""Plan -> compressed weights: builds the compressor of each treatment and applies it."""

import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.compression.calibration import Calibration, check_needs
from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer, Plan, Treatment
from compressor.errors import CompressorError, ConfigError, PlanError, PluginError, suggest
from compressor.models import Model, Replacement
from compressor.registry import Registry, build_options, option_names


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
            check_needs(name, compressor.needs)
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
            name: {component.name: compressor.offer(component) for component in model.components.values()}
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
            offer, context = compressor.offer(component), self.make_context(compressor, component, weight)
            with named_by(self.installed, compressor, component.name):
                for compressed in compress_alike(compressor, offer, weight, chosen, context):
                    check_dense(compressed.dense(), weight)
                    if compressed.input_transform is not None and not compressor.transforms_inputs:
                        raise ValueError("its weights have an `input_transform`, so `transforms_inputs` must be True")
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
            importance = chosen.importance(weight, self.make_context(chosen, component, weight))
            if importance is None:
                raise ConfigError(
                    f"compressor `{compressor}` does not rank single weights, which this schedule needs; "
                    "use a pruner such as magnitude"
                )
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
        yield from compressor.compress_each(weight, [treatment.amount for treatment in treatments], context)
        return
    for treatment in treatments:
        rows = treatment.rows or ()
        offer.require_rows(rows, compressor.name, component)
        yield compressor.compress_rows(weight, rows, context)


@contextmanager
def named_by(installed: Registry[Compressor], compressor: Compressor, component: str) -> Iterator[None]:
    """Converts errors of a compressor into one line that names it, its distribution and the component."""
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:
        entry = installed.entries.get(compressor.name)
        owner = f" of {entry.distribution} {entry.version}" if entry else ""
        reason = " ".join(str(error).split())
        raise PluginError(
            f"compressor `{compressor.name}`{owner} failed on {component}: {type(error).__name__}: {reason}"
        ) from error


def read_untreated(model: Model, name: str) -> Tensor:
    """The weight `[out, in]` that treatments start from: the base's, because treatments replace one another."""
    return model.held[name].to(model.device, copy=True) if name in model.held else model.read(name)


def check_names(model: Model, names: Iterable[str]) -> None:
    """Raise PlanError for a name that is not a component of the model."""
    for name in names:
        if name not in model.weight_views:
            raise PlanError(f"unknown component `{name}`; {suggest(name, model.weight_views)}")


def check_dense(dense: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless `dense` has the shape and dtype of `weight` and is finite."""
    if dense.shape != weight.shape or dense.dtype != weight.dtype:
        raise ValueError(
            f"dense value is {tuple(dense.shape)} {dense.dtype}, the weight is {tuple(weight.shape)} {weight.dtype}"
        )
    if not is_finite(dense):
        raise ValueError("dense value holds NaN or infinity")


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. A finite sum proves it, and is much faster to compute."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def make_replacement(compressed: CompressedWeight) -> Replacement:
    """The dense weight and the input transform, as the model takes them."""
    return Replacement(compressed.dense(), compressed.input_transform)
