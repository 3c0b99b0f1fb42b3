"""Batches of sequences that are scored together, and how the values of metrics are read from a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from compressor.contracts import Metric, Readout, Reads
from compressor.data.reference import Reference
from compressor.errors import CompressorError, ModelError, PluginError
from compressor.models import Model

BatchValues = Mapping[str, Tensor]
"""Metric name -> `[sequence, value]`, for the sequences of one batch."""

Scored = Iterator[tuple[int, list[BatchValues]]]
"""Numbers of trials, each with its values on every batch."""

Reader = Callable[[Readout], BatchValues]
"""Computes the values of a batch from the readout of a trial."""


class Batch(Protocol):
    """Sequences that are scored together: `tokens` `[sequence, length]`, and what they should be followed by.

    `targets` `[sequence, keep]` are the expected next tokens at the last `keep` positions of `tokens`. `counted`
    `[sequence, keep]` marks the positions to score; None means all. With `only_leading`, metrics read nothing but
    `Readout.leading`.
    """

    @property
    def tokens(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def counted(self) -> Tensor | None: ...
    @property
    def only_leading(self) -> bool: ...

    def open(self) -> AbstractContextManager[Reader]:
        """Inside, what computes the values of trials on this batch."""
        ...


class Continuations:
    """A batch of the base's own continuations; all metrics that read continuations share one forward pass."""

    def __init__(
        self, model: Model, reference: Reference, metrics: Mapping[str, Metric], index: int, tokens: Tensor
    ) -> None:
        self.tokens, self.counted = tokens[:, :-1], None
        self.targets = tokens[:, reference.prefix_tokens :].to(model.device)
        self.only_leading = all(metric.reads is Reads.LEADING for metric in metrics.values())
        self._reference, self._metrics, self._index = reference, metrics, index

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The base's logits are computed once for all trials, if a metric reads them."""
        needs_base = any(metric.reads & Reads.BASE for metric in self._metrics.values())
        base = self._reference.base_readout(self._index, len(self.targets)) if needs_base else None

        def read(candidate: Readout) -> BatchValues:
            return {name: read_values(metric, candidate, base or candidate) for name, metric in self._metrics.items()}

        yield read


class Text:
    """A batch of windows of text for one metric."""

    only_leading = False

    def __init__(self, name: str, metric: Metric, tokens: Tensor, counted: Tensor, device: torch.device) -> None:
        self.tokens, self.targets, self.counted = tokens[:, :-1], tokens[:, 1:].to(device), counted.to(device)
        self._name, self._metric = name, metric

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The base is not read."""
        yield lambda candidate: {self._name: read_values(self._metric, candidate, candidate)}


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
