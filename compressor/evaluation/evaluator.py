"""Scores many trials against what the base says: by the engine, or by a plain forward pass each, its oracle."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.contracts import Metric, Plan, Readout
from compressor.data.reference import Reference
from compressor.data.texts import Windows
from compressor.evaluation.batches import Batch, Continuations, Found, Text
from compressor.evaluation.engine import Engine
from compressor.evaluation.layer_replay import CannotReplay, LayerReplay
from compressor.evaluation.streaming_engine import StreamingEngine
from compressor.evaluation.weight_source import WeightSource, make_weights
from compressor.models import Model
from compressor.resources import MemoryBudget
from compressor.settings import SweepMode

log = logging.getLogger(__name__)

SequenceValues = dict[str, NDArray[np.float64]]
"""Metric name -> `[sequence, value]`."""


@dataclass
class Evaluator:
    """Scores candidates against one reference.

    `weight_source` makes the weights of trials. `windows` holds the text of each metric that reads text instead of
    continuations.
    """

    model: Model
    reference: Reference
    metrics: Mapping[str, Metric]
    weight_source: WeightSource = field(repr=False)
    windows: Mapping[str, Windows] = field(default_factory=dict)
    mode: SweepMode = SweepMode.exact
    engine: Engine | None = field(default=None, repr=False)
    memory: MemoryBudget = field(default_factory=MemoryBudget)

    def score(
        self, trials: Sequence[Plan], names: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, SequenceValues]]:
        """Number and per-sequence values of each trial, as they come; every trial is undone.

        `names` None means every metric, `start` and `stop` choose prefixes; text is always read whole.
        """
        batches, chosen = self._list_batches(names, start, stop), list(names or self.metrics)
        engine = self._find_engine() if len(trials) > 1 else None
        shared = {number: trial for number, trial in enumerate(trials) if engine and engine.takes(trial)}
        for number, trial in enumerate(trials):
            if number not in shared:
                with self.model.swapped(make_weights(self.weight_source, trial)):
                    yield number, join_values(chosen, [score_plainly(self.model, batch) for batch in batches])
        if engine and shared:
            for number, found in engine.score(shared, batches):
                yield number, join_values(chosen, found)

    def score_all(
        self, trials: Sequence[Plan], names: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> list[SequenceValues]:
        """As `score`, in the order of the trials."""
        found = dict(self.score(trials, names, start, stop))
        return [found[number] for number in range(len(trials))]

    def score_current(
        self, names: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> SequenceValues:
        """Per-sequence values of the model as it stands."""
        return self.score_all([{}], names, start, stop)[0]

    def _list_batches(self, names: Sequence[str] | None, start: int, stop: int | None) -> list[Batch]:
        """What goes through the model for these metrics: continuations, and each one's text."""
        metrics = {name: self.metrics[name] for name in (self.metrics if names is None else names)}
        batches: list[Batch] = []
        if on_base := {name: metric for name, metric in metrics.items() if metric.text() is None}:
            for index, tokens in self.reference.batches(start, stop):
                batches.append(Continuations(self.model, self.reference, on_base, index, tokens))
        for name, metric in metrics.items():
            if name not in on_base:
                batches += self._list_text(name, metric)
        return batches

    def _list_text(self, name: str, metric: Metric) -> Iterator[Batch]:
        windows = self.windows[name]
        size = max(1, self.reference.batch * self.reference.tokens.shape[1] // windows.tokens.shape[1])
        for tokens, counted in zip(windows.tokens.split(size), windows.counted.split(size), strict=True):
            yield Text(name, metric, tokens, counted, self.model.device)

    def _find_engine(self) -> Engine | None:
        """The engine of this model, proven at its first use; None where trials must be plain forward passes."""
        if self.mode is not SweepMode.plain and self.engine is None:
            try:
                streams = self.model.mapped_weights is not None
                replay, source = LayerReplay(self.model), self.weight_source
                self.engine = StreamingEngine(replay, source, self.memory) if streams else Engine(replay, source)
            except CannotReplay as error:
                self.mode = SweepMode.plain
                name = type(self.model.network).__name__
                log.warning("every trial is a whole forward pass: %s cannot be run layer by layer, %s", name, error)
        return self.engine if self.mode is not SweepMode.plain else None


def score_plainly(model: Model, batch: Batch) -> Found:
    """One forward pass of the model as it stands."""
    with batch.opened() as read:
        return read(Readout(model.logits(batch.tokens, batch.said.shape[1]), batch.said, batch.counted))


def join_values(names: Sequence[str], parts: Sequence[Found]) -> SequenceValues:
    """The per-sequence values of all batches, by metric."""
    return {name: torch.cat([part[name] for part in parts if name in part]).numpy() for name in names}
