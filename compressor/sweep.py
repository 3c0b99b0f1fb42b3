"""The engine: scores many trials, each by a plain forward pass; the oracle for any faster one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.contracts import Metric, Reads
from compressor.data import Windows
from compressor.errors import CompressorError, ModelError, PluginError
from compressor.models import Model
from compressor.readout import Readout
from compressor.reference import Reference

Statistics = dict[str, NDArray[np.float64]]
"""Metric name -> `[sequence, statistic]`."""

Weights = Mapping[str, Tensor]
"""Component name -> dense weight `[out, in]`."""


@dataclass
class Sweep:
    """Scores candidates against one reference.

    `windows` holds the text of each metric that reads text instead of continuations.
    """

    model: Model
    reference: Reference
    metrics: Mapping[str, Metric]
    windows: Mapping[str, Windows] = field(default_factory=dict)

    def score(
        self,
        trials: Sequence[Callable[[], Weights]],
        names: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Statistics]:
        """Statistics of each trial in order; a trial makes its weights when it is reached and is undone after it."""
        for trial in trials:
            with self.model.swapped(trial()):
                statistics = self.score_current(names, start, stop)
            yield statistics

    def score_current(self, names: Sequence[str] | None = None, start: int = 0, stop: int | None = None) -> Statistics:
        """Statistics of the model as it stands; `names` None means every metric, `start` and `stop` choose prefixes."""
        metrics = {name: self.metrics[name] for name in (self.metrics if names is None else names)}
        on_base = {name: metric for name, metric in metrics.items() if metric.text() is None}
        result = self.score_continuations(on_base, start, stop) if on_base else {}
        for name in metrics:
            if name not in on_base:
                result[name] = self.score_text(name, metrics[name])
        return {name: result[name] for name in metrics}

    def score_continuations(self, metrics: Mapping[str, Metric], start: int = 0, stop: int | None = None) -> Statistics:
        """One teacher-forced pass over the reference feeds all metrics that read continuations."""
        keep = self.reference.continuation_tokens
        needs_base = any(metric.reads & Reads.BASE for metric in metrics.values())
        parts: dict[str, list[Tensor]] = {name: [] for name in metrics}
        for index, batch in self.reference.batches(start, stop):
            tokens = batch[:, -keep:].to(self.model.device)
            candidate = Readout(self.model.logits(batch[:, :-1], keep), tokens)
            base = self.reference.base_readout(index, len(batch), self.model) if needs_base else candidate
            for name, metric in metrics.items():
                parts[name].append(read_statistics(metric, candidate, base))
        return {name: torch.cat(part).numpy() for name, part in parts.items()}

    def score_text(self, name: str, metric: Metric) -> NDArray[np.float64]:
        """A metric on its own text windows."""
        windows, parts = self.windows[name], []
        length = windows.tokens.shape[1]
        size = max(1, self.reference.batch * self.reference.tokens.shape[1] // length)
        for tokens, counted in zip(windows.tokens.split(size), windows.counted.split(size), strict=True):
            logits = self.model.logits(tokens[:, :-1], length - 1)
            target, mask = tokens[:, 1:].to(self.model.device), counted.to(self.model.device)
            candidate = Readout(logits, target, mask)
            parts.append(read_statistics(metric, candidate, candidate))
        return torch.cat(parts).numpy()


def read_statistics(metric: Metric, candidate: Readout, base: Readout) -> Tensor:
    """`[sequence, statistic]` in float64 on the CPU; what the metric gives is checked."""
    try:
        statistics = metric.statistics(
            candidate.restricted(metric.reads, metric.name), base.restricted(metric.reads, metric.name)
        )
        found = tuple(statistics.shape)
    except CompressorError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"metric `{metric.name}` failed: {type(error).__name__}: {reason}") from error
    if len(found) != 2 or found[0] != len(candidate.tokens):
        raise PluginError(
            f"metric `{metric.name}` gave statistics of shape {found}; [{len(candidate.tokens)}, statistic] is needed"
        )
    statistics = statistics.double().cpu()
    if not statistics.isfinite().all():
        if not candidate.logits.isfinite().all():
            raise ModelError(
                "the candidate's logits hold NaN or infinity; use a wider model.dtype or a milder treatment"
            )
        raise PluginError(f"metric `{metric.name}` gave NaN or infinity on finite logits; mend the metric")
    return statistics
