"""What goes through a model at once, and how what it says is read."""

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

Found = Mapping[str, Tensor]
"""Metric name -> `[sequence, value]`."""


class Batch(Protocol):
    """Sequences that are scored together: `tokens` `[sequence, length]`, after which should come `said`.

    `said` and `counted`, the positions that count (None for all), are `[sequence, keep]`, for the last `keep` positions
    of `tokens`. `only_leading` says that nothing is read but `Readout.leading`.
    """

    @property
    def tokens(self) -> Tensor: ...
    @property
    def said(self) -> Tensor: ...
    @property
    def counted(self) -> Tensor | None: ...
    @property
    def only_leading(self) -> bool: ...

    def opened(self) -> AbstractContextManager[Callable[[Readout], Found]]:
        """Inside, turns what a trial says into per-sequence values."""
        ...


class Continuations:
    """A batch of what the base said; all metrics that read continuations are fed by one pass."""

    def __init__(
        self, model: Model, reference: Reference, metrics: Mapping[str, Metric], index: int, tokens: Tensor
    ) -> None:
        self.tokens, self.counted = tokens[:, :-1], None
        self.said = tokens[:, reference.prefix_tokens :].to(model.device)
        self.only_leading = all(metric.reads is Reads.LEADING for metric in metrics.values())
        self._model, self._reference, self._metrics, self._index = model, reference, metrics, index

    @contextmanager
    def opened(self) -> Iterator[Callable[[Readout], Found]]:
        """The base's own logits are made once, if a metric needs them."""
        needs_base = any(metric.reads & Reads.BASE for metric in self._metrics.values())
        base = self._reference.base_readout(self._index, len(self.said), self._model) if needs_base else None

        def read(candidate: Readout) -> Found:
            return {name: read_values(metric, candidate, base or candidate) for name, metric in self._metrics.items()}

        yield read


class Text:
    """A batch of windows of text that one metric reads."""

    only_leading = False

    def __init__(self, name: str, metric: Metric, tokens: Tensor, counted: Tensor, device: torch.device) -> None:
        self.tokens, self.said, self.counted = tokens[:, :-1], tokens[:, 1:].to(device), counted.to(device)
        self._name, self._metric = name, metric

    @contextmanager
    def opened(self) -> Iterator[Callable[[Readout], Found]]:
        """The base is not asked."""
        yield lambda candidate: {self._name: read_values(self._metric, candidate, candidate)}


def read_values(metric: Metric, candidate: Readout, base: Readout) -> Tensor:
    """`[sequence, value]` in float64 on the CPU; what the metric gives is checked."""
    try:
        values = metric.sequence_values(
            candidate.restricted(metric.reads, metric.name), base.restricted(metric.reads, metric.name)
        )
        found = tuple(values.shape)
    except CompressorError:
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
