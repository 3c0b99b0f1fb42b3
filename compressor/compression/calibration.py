"""Calibration data of components, gathered while the model reads prefixes and the base's continuations.

Most of it is computed from a component's inputs, in forward passes. The Fisher information takes a backward pass.

`compressor.contracts.Context` defines the data. The tokens are those of a scoring pass: prefixes and continuations
without the last token. The LM head only gets tokens that predict continuations. A token with zero inputs is not
counted: some families give an expert zeros for other tokens.

If the reference has weights w_t, the means are Σ_t w_t x_t x_tᵀ / Σ_t w_t and its diagonal. The inputs of an expert
come without their positions, so they all count the same.
"""

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.compression.fisher import FISHER_DIAGONAL, gather_fisher
from compressor.contracts import Compressor
from compressor.contracts.guard import name_plugin, show
from compressor.data.reference import Reference
from compressor.errors import ModelError, PluginError, suggest
from compressor.models import Model
from compressor.models.components import find_layers
from compressor.models.gradients import PASSES_OF_BACKWARD
from compressor.models.matmul_inputs import MatmulInputs, Receive, experts_apart
from compressor.models.tensor_spill import TensorSpill
from compressor.models.weight_views import WeightView
from compressor.resources import MemoryBudget

PROBE = (1, 4)
"""Sequences and tokens of the forward pass that finds components with the same inputs."""


@dataclass(frozen=True)
class Accumulation:
    """A sum or maximum over tokens: its shape by the width of the inputs, and how inputs `[token, in]` are added."""

    shape: Callable[[int], tuple[int, ...]]
    add: Callable[[Tensor, Tensor], object]
    is_mean: bool = False
    dtype: torch.dtype = torch.float32

    def start(self, width: int, device: torch.device | None = None) -> Tensor:
        """Zeros to add to, for inputs of this width."""
        return torch.zeros(self.shape(width), dtype=self.dtype, device=device)


SMALLEST = torch.finfo(torch.float64).tiny
TOKENS = "tokens"
CALIBRATION_DATA = {
    "hessian": Accumulation(lambda width: (width, width), lambda total, x: total.addmm_(x.mT, x), is_mean=True),
    "second_moment": Accumulation(lambda width: (width,), lambda total, x: total.add_(x.square().sum(0)), is_mean=True),
    "absmax": Accumulation(lambda width: (width,), lambda total, x: torch.maximum(total, x.abs().amax(0), out=total)),
    TOKENS: Accumulation(lambda width: (), lambda total, x: total.add_(x.any(-1).sum()), dtype=torch.int64),
}
"""Data that are computed from a component's inputs."""
NAMES = (*CALIBRATION_DATA, FISHER_DIAGONAL)
"""All calibration data that a run gathers."""


def check_needs(compressor: Compressor | type[Compressor]) -> None:
    """Raise PluginError for calibration data that no run gathers."""
    needs: object = compressor.needs
    if not isinstance(needs, frozenset | set) or not all(isinstance(name, str) for name in needs):
        raise PluginError(f"`needs` of {name_plugin(compressor)} is {show(needs)}; give a frozenset of names")
    for name in needs:
        if name not in NAMES:
            raise PluginError(
                f"{name_plugin(compressor)} needs the calibration data `{name}`, which no run gathers; "
                f"{suggest(name, NAMES)}"
            )


@dataclass
class Calibration:
    """The calibration data `names` of components, on the host. Files on disk are deleted together with this object.

    Components with the same inputs share a source of what is computed from inputs. `passes` is the cost of gathering in
    forward passes.
    """

    names: frozenset[str]
    sources: Mapping[str, str]
    spill: TensorSpill = field(repr=False)
    passes: float = 0.0

    def __post_init__(self) -> None:
        weakref.finalize(self, self.spill.__exit__)

    def read(self, component: str, names: Iterable[str]) -> dict[str, Tensor] | None:
        """The data by name; None if not all of these were gathered for the component."""
        if component not in self.sources or not self.names.issuperset(names):
            return None
        source = self.sources[component]
        return {name: self.spill.get((component if name == FISHER_DIAGONAL else source, name)) for name in names}


def gather(
    model: Model,
    reference: Reference,
    components: Collection[str],
    names: Iterable[str],
    last: int | None = None,
    memory: MemoryBudget | None = None,
) -> Calibration:
    """Calibration data of `components` in the current model, over all sequences of `reference`.

    With `last`, layers after it do not run in forward passes. The budget `memory` decides for how many components data
    are gathered in one pass (at least one), and how much stays in memory; the rest is on disk. Raises ModelError for a
    component whose inputs cannot be observed, or whose inputs or gradients are not finite.
    """
    wanted, memory = frozenset(names), memory or MemoryBudget()
    calibration = Calibration(wanted, {name: name for name in components}, TensorSpill(memory.calibration))
    if wanted != {FISHER_DIAGONAL}:
        calibration.names |= {TOKENS}
        _gather_of_inputs(model, reference, calibration, last, memory.calibration_pass)
    if FISHER_DIAGONAL in wanted:
        sizes = {name: 4 * model.components[name].parameters for name in components}
        for found in gather_fisher(model, reference, group_by_size(sizes, memory.calibration_pass)):
            calibration.passes += PASSES_OF_BACKWARD
            for name, fisher in found.items():
                calibration.spill.put((name, FISHER_DIAGONAL), fisher)
    return calibration


def _gather_of_inputs(
    model: Model, reference: Reference, calibration: Calibration, last: int | None, limit: int
) -> None:
    """Gather what is computed from inputs, in forward passes that each take at most `limit` bytes of data."""
    names = calibration.names - {FISHER_DIAGONAL}
    weight_views = {name: model.weight_views[name] for name in calibration.sources}
    share = 1.0 if last is None else (last + 1) / len(find_layers(model.network)[1])
    with experts_apart(weight_view.owner for weight_view in weight_views.values()):
        gathering = _Gathering(model, reference, weight_views, names, last)
        calibration.sources = gathering.find_sources()
        sizes = {source: gathering.count_bytes(source) for source in calibration.sources.values()}
        for group in group_by_size(sizes, limit):
            calibration.passes += share
            for source, totals in gathering.gather_group(group).items():
                for name, total in totals.items():
                    calibration.spill.put((source, name), total)
    gathering.check_seen()


def group_by_size(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Groups of names, in order, whose `sizes` are at most `limit` together; each has one name at least."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


@dataclass
class _Gathering:
    """One call of `gather`. `used` are components whose parameter was used, `seen` those used in a matrix product.

    `weights` `[sequence, position]` are those of the batch that is running, where tokens do not count the same.
    """

    model: Model
    reference: Reference
    weight_views: Mapping[str, WeightView]
    names: frozenset[str]
    last: int | None
    used: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    weights: Tensor | None = field(default=None, init=False)

    def find_sources(self) -> dict[str, str]:
        """For each component the first one with identical inputs, by a pass over a few tokens."""
        observed: dict[str, list[object]] = {name: [] for name in self.weight_views}
        kept: list[Tensor] = []  # so that no two tensors have the same address

        def observe(names: Sequence[str], inputs: Tensor) -> None:
            kept.append(inputs)
            for name in names:
                observed[name].append((inputs.data_ptr(), inputs.shape, inputs.stride(), inputs._version))

        sequences, length = PROBE
        with self._watched(self.weight_views, observe):
            self._run(self.reference.tokens[:sequences, :length])
        first: dict[object, str] = {}
        return {name: first.setdefault(tuple(calls) or name, name) for name, calls in observed.items()}

    def count_bytes(self, source: str) -> int:
        """What the data of a source take."""
        width = self.weight_views[source].component.shape[1]
        return sum(4 * math.prod(CALIBRATION_DATA[name].shape(width)) for name in self.names)

    def gather_group(self, group: Collection[str]) -> dict[str, dict[str, Tensor]]:
        """Source -> name -> calibration data, by one forward pass over all sequences.

        Raises ModelError for values that are not finite.
        """
        totals: dict[str, dict[str, Tensor]] = {}
        for source in group:
            width = self.weight_views[source].component.shape[1]
            totals[source] = {name: CALIBRATION_DATA[name].start(width, self.model.device) for name in self.names}
        weights = None if self.reference.weights is None else self.reference.weights.to(self.model.device)
        # Σ_t w_t, in float64, which many small weights do not round away
        sums = {} if weights is None else {source: weights.new_zeros((), dtype=torch.float64) for source in group}

        def accumulate(names: Sequence[str], inputs: Tensor) -> None:
            rows = inputs.float()
            for source in names:
                weighted = rows
                if source in sums:
                    own = self.find_weights(source, rows)
                    weighted = rows * own.sqrt()[:, None]
                    sums[source] += (own * rows.any(-1)).sum()
                for name, total in totals[source].items():
                    CALIBRATION_DATA[name].add(total, weighted if CALIBRATION_DATA[name].is_mean else rows)

        with self._watched({source: self.weight_views[source] for source in group}, accumulate):
            for start, tokens in self.reference.batches():
                self.weights = None if weights is None else weights[start : start + len(tokens)]
                self._run(tokens[:, :-1])
        for source, found in totals.items():
            for name, total in found.items():
                if CALIBRATION_DATA[name].is_mean:
                    total /= sums[source].clamp(min=SMALLEST) if source in sums else found[TOKENS].clamp(min=1)
                if not total.isfinite().all():
                    raise ModelError(
                        f"the inputs of `{source}` hold NaN or infinity, or their squares are too large; use "
                        "model.dtype=float32, or exclude it by components.exclude"
                    )
        return totals

    def find_weights(self, source: str, rows: Tensor) -> Tensor:
        """w `[token]` of the inputs `rows` `[token, in]` of a product: 1 where their positions are not known."""
        assert self.weights is not None
        kept = self.weights[:, -self.reference.continuation_tokens :]  # what the LM head gets
        for weights in () if self.weight_views[source].is_expert else (self.weights, kept):
            if weights.numel() == len(rows):
                return weights.flatten()
        return rows.new_ones(len(rows))

    def check_seen(self) -> None:
        """Raise ModelError for a component that is used, but in no matrix product."""
        for name in self.weight_views:
            if name in self.used - self.seen:
                raise ModelError(
                    f"the inputs of `{name}` cannot be observed: its matrix is used outside matrix products; exclude "
                    "it by components.exclude, or leave out compressors that need calibration data"
                )

    @contextmanager
    def _watched(self, weight_views: Mapping[str, WeightView], on_inputs: Receive) -> Iterator[None]:
        """Inside, `on_inputs` is called at each matrix product, and a forward pass stops after the layer `last`."""
        layers = find_layers(self.model.network)[1]
        products = MatmulInputs(weight_views, on_inputs)
        handle = None if self.last is None else layers[self.last].register_forward_hook(_stop)
        try:
            with products:
                yield
        finally:
            if handle is not None:
                handle.remove()
        self.used |= products.used
        self.seen |= products.seen

    def _run(self, tokens: Tensor) -> None:
        try:
            self.model.logits(tokens, min(tokens.shape[1], self.reference.continuation_tokens))
        except _Enough:
            pass


class _Enough(Exception):
    """Raised to stop a forward pass after the last layer that is needed."""


def _stop(module: nn.Module, inputs: object, output: object) -> None:
    raise _Enough
