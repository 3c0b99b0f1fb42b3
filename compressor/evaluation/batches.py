"""Batches of sequences that are scored together, and how the values of metrics are read from a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.contracts import Metric, Readout
from compressor.errors import CompressorError, ModelError, PluginError

BatchValues = Mapping[str, Tensor]
"""Metric name -> `[sequence, value]`, for the sequences of one batch."""

Scored = Iterator[tuple[int, list[BatchValues]]]
"""Numbers of trials, each with its values on every batch."""

Reader = Callable[[Readout], BatchValues]
"""Computes the values of a batch from the readout of a trial."""


@dataclass(frozen=True)
class Batch:
    """Sequences that are scored together by `metrics`: `tokens` `[sequence, length]`, and what should follow them.

    `targets` `[sequence, keep]` are the expected next tokens at the last `keep` positions of `tokens`. `counted`
    `[sequence, keep]` marks the positions to score; None means all. With `only_leading`, metrics read nothing but
    `Readout.leading`. `read_base` gives the base's readout; None if no metric reads it.
    """

    tokens: Tensor
    targets: Tensor
    metrics: Mapping[str, Metric]
    counted: Tensor | None = None
    only_leading: bool = False
    read_base: Callable[[], Readout] | None = None

    def make_reader(self) -> Reader:
        """Computes the values of trials on this batch. The base's logits are computed once for all of them."""
        base = self.read_base() if self.read_base else None

        def read(candidate: Readout) -> BatchValues:
            return {name: read_values(metric, candidate, base or candidate) for name, metric in self.metrics.items()}

        return read


def read_values(metric: Metric, candidate: Readout, base: Readout) -> Tensor:
    """The checked values of a metric: `[sequence, value]` in float64 on the CPU."""
    try:
        values = metric.sequence_values(
            candidate.restricted(metric.reads, metric.name), base.restricted(metric.reads, metric.name)
        )
        found = tuple(values.shape)
    except (CompressorError, torch.OutOfMemoryError):  # an engine goes on with fewer trials at once
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"metric `{metric.name}` failed: {type(error).__name__}: {reason}") from error
    if len(found) != 2 or found[0] != len(candidate.tokens):
        raise PluginError(
            f"metric `{metric.name}` gave values of shape {found}; [{len(candidate.tokens)}, value] is needed"
        )
    values = values.double().cpu()
    if not values.isfinite().all():
        if not candidate.logits.isfinite().all():
            raise ModelError(
                "the candidate's logits hold NaN or infinity; use a wider model.dtype or a milder treatment"
            )
        raise PluginError(f"metric `{metric.name}` gave NaN or infinity on finite logits; mend the metric")
    return values
