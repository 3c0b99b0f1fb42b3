"""Batches of sequences that are scored together, and how the values of metrics are read from a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.contracts import Metric, Readout
from compressor.contracts.guard import name_plugin
from compressor.contracts.outputs import RestrictedReadout
from compressor.errors import ModelError, PluginError

BatchValues = Mapping[str, Tensor]
"""Metric name -> `[sequence, value]`, for the sequences of one batch."""

Scored = Iterator[Mapping[int, list[BatchValues]]]
"""Groups of trials that come together: number of a trial -> its values on every batch."""

LARGEST = 1e150
"""The largest value of a sequence."""

Reader = Callable[[Readout], BatchValues]
"""Computes the values of a batch from the readout of a trial."""


@dataclass(frozen=True)
class Batch:
    """Sequences that are scored together by `metrics`: `tokens` `[sequence, length]`, and what should follow them.

    `targets` `[sequence, keep]` are the expected next tokens at the last `keep` positions of `tokens`. `counted`
    `[sequence, keep]` marks the positions to score; None means all. With `only_leading`, metrics read nothing but
    `Readout.leading`. `read_base` gives the base's readout; None if no metric reads it. Metrics in `unrepeated`, which
    batches share, are read twice at the next readout.
    """

    tokens: Tensor
    targets: Tensor
    metrics: Mapping[str, Metric]
    counted: Tensor | None = None
    only_leading: bool = False
    read_base: Callable[[], Readout] | None = None
    unrepeated: set[str] = field(default_factory=set)

    def make_reader(self) -> Reader:
        """Computes the values of trials on this batch. The base's logits are computed once for all of them."""
        base = self.read_base() if self.read_base else None

        def read(candidate: Readout) -> BatchValues:
            found = {name: read_values(metric, candidate, base or candidate) for name, metric in self.metrics.items()}
            for name in self.unrepeated & found.keys():
                again = read_values(self.metrics[name], candidate, base or candidate)
                require_equal(self.metrics[name], found[name], again)
                self.unrepeated.discard(name)
            return found

        return read


def read_values(metric: Metric, candidate: Readout, base: Readout) -> Tensor:
    """The checked values of a metric: `[sequence, value]` in float64 on the CPU."""
    views = [readout.restricted(metric.reads, metric.name) for readout in (candidate, base)]
    found = metric.sequence_values(*views)
    check_unchanged(metric, views)
    values = check_values(metric, found, len(candidate.tokens))
    if not values.isfinite().all():
        if not candidate.logits.isfinite().all():
            raise ModelError(
                "the candidate's logits hold NaN or infinity; use a wider model.dtype or a milder treatment"
            )
        raise PluginError(f"{name_plugin(metric)} gave NaN or infinity on finite logits; mend the metric")
    if float(values.abs().max()) > LARGEST:
        raise PluginError(
            f"{name_plugin(metric)} gave the value {float(values.abs().max()):g}; at most {LARGEST:g} is allowed, so "
            "that sums and squares are finite: scale the values"
        )
    return values


def require_equal(metric: Metric, values: Tensor, again: Tensor) -> None:
    """Raise PluginError unless a metric gave the same values twice for the same outputs."""
    if not torch.equal(values, again):
        raise PluginError(
            f"{name_plugin(metric)} gave other values at a second call with the same outputs; they must follow from "
            "these and its options: make what is random from a fixed seed"
        )


def check_unchanged(metric: Metric, views: Iterable[RestrictedReadout]) -> None:
    """Raise PluginError if the metric changed what it has read."""
    if changed := [name for view in views for name in view.list_changed()]:
        raise PluginError(
            f"{name_plugin(metric)} changed `{changed[0]}`, which other metrics read too; work on a copy of it"
        )


def check_values(metric: Metric, found: object, sequences: int) -> Tensor:
    """The values as `[sequence, value]` in float64 on the CPU; raises PluginError for anything else."""
    if not isinstance(found, Tensor):
        raise PluginError(
            f"{name_plugin(metric)} gave values of type {type(found).__name__}; a tensor [{sequences}, value] is needed"
        )
    if found.ndim != 2 or len(found) != sequences or not found.shape[1]:
        raise PluginError(
            f"{name_plugin(metric)} gave values of shape {tuple(found.shape)}; [{sequences}, value] is needed"
        )
    if found.is_complex() or found.layout is not torch.strided or found.device.type == "meta":
        raise PluginError(
            f"{name_plugin(metric)} gave values that are {found.dtype}, {found.layout}, on {found.device}; "
            "real, dense numbers are needed"
        )
    return found.detach().double().cpu()
