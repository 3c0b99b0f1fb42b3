"""Scores trials against the base: by an engine where the layers can be run one at a time, else by plain forward passes.

Both give the same values, so the plain forward passes are the check of the engines.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.contracts import Metric, Plan, Readout, Reads
from compressor.data.reference import Reference
from compressor.data.texts import Windows
from compressor.evaluation.batches import Batch, BatchValues, Scored
from compressor.evaluation.engine import Engine
from compressor.evaluation.layer_replay import CannotReplay, LayerReplay
from compressor.evaluation.layer_runner import LayerRunner
from compressor.evaluation.streaming_engine import StreamingEngine
from compressor.evaluation.weight_source import WeightSource, make_weights
from compressor.models import Model
from compressor.resources import MemoryBudget
from compressor.settings import SweepMode

log = logging.getLogger(__name__)

SequenceValues = dict[str, NDArray[np.float64]]
"""Metric name -> `[sequence, value]`."""


class TrialEngine(Protocol):
    """Scores many trials together, which all change layers and nothing else."""

    replay: LayerReplay
    runner: LayerRunner

    def score(self, trials: Mapping[int, Plan], batches: Sequence[Batch]) -> Scored:
        """The values of each numbered trial, as they come; do not use the model before the last has come."""
        ...


@dataclass
class Evaluator:
    """Scores trials of one model against one reference. A trial is a plan; the model is restored after each.

    `weight_source` makes the weights of trials. `windows` holds the text of each metric that reads text instead of
    continuations.
    """

    model: Model
    reference: Reference
    metrics: Mapping[str, Metric]
    weight_source: WeightSource = field(repr=False)
    windows: Mapping[str, Windows] = field(default_factory=dict)
    mode: SweepMode = SweepMode.exact
    engine: TrialEngine | None = field(default=None, repr=False)
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    unrepeated: set[str] = field(init=False, repr=False)
    """Metrics that have read no outputs yet. The first are read twice, to see that a metric is a function of them."""

    def __post_init__(self) -> None:
        self.unrepeated = set(self.metrics)

    def score(
        self, trials: Sequence[Plan], names: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[int, SequenceValues]]:
        """Per-sequence values by number of trial, in groups of trials that come together.

        `names` are the metrics; None means all. `start` and `stop` choose prefixes; text is always read whole.
        """
        batches, chosen = self._list_batches(names, start, stop), list(names or self.metrics)
        engine = self._find_engine() if len(trials) > 1 else None
        by_engine = {
            number: trial for number, trial in enumerate(trials) if engine and trial and engine.replay.contains(trial)
        }
        for number, trial in enumerate(trials):
            if number not in by_engine:
                with self.model.swapped(make_weights(self.weight_source, trial)):
                    yield {number: join_values(chosen, [score_plainly(self.model, batch) for batch in batches])}
        if engine and by_engine:
            for group in engine.score(by_engine, batches):
                yield {number: join_values(chosen, found) for number, found in group.items()}

    def score_all(
        self, trials: Sequence[Plan], names: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> list[SequenceValues]:
        """As `score`, in the order of the trials."""
        found = dict(item for group in self.score(trials, names, start, stop) for item in group.items())
        return [found[number] for number in range(len(trials))]

    def score_current(
        self, names: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> SequenceValues:
        """Per-sequence values of the current model, as by `score`."""
        return self.score_all([{}], names, start, stop)[0]

    def _list_batches(self, names: Sequence[str] | None, start: int, stop: int | None) -> list[Batch]:
        """Batches of continuations, which these metrics share, and batches of text for each metric that reads text."""
        reference, device = self.reference, self.model.device
        metrics = {name: self.metrics[name] for name in (self.metrics if names is None else names)}
        shared = {name: metric for name, metric in metrics.items() if name not in self.windows}
        needs_base = any(metric.reads & Reads.BASE for metric in shared.values())
        only_leading = all(metric.reads is Reads.LEADING for metric in shared.values())
        batches: list[Batch] = []
        for first, tokens in reference.batches(start, stop) if shared else ():
            targets = tokens[:, reference.prefix_tokens :].to(device)
            read_base = partial(reference.base_readout, first, len(tokens)) if needs_base else None
            batches.append(Batch(tokens[:, :-1], targets, shared, None, only_leading, read_base, self.unrepeated))
        for name in (name for name in metrics if name not in shared):
            windows = self.windows[name]
            size = max(1, reference.batch * reference.tokens.shape[1] // windows.tokens.shape[1])
            for tokens, counted in zip(windows.tokens.split(size), windows.counted.split(size), strict=True):
                targets = tokens[:, 1:].to(device)
                one = {name: metrics[name]}
                batches.append(Batch(tokens[:, :-1], targets, one, counted.to(device), unrepeated=self.unrepeated))
        return batches

    def _find_engine(self) -> TrialEngine | None:
        """The engine of this model, checked at its first use; None where each trial must be a plain forward pass."""
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


def score_plainly(model: Model, batch: Batch) -> BatchValues:
    """The values of the current model on a batch, by one forward pass."""
    read = batch.make_reader()
    return read(Readout(model.logits(batch.tokens, batch.targets.shape[1]), batch.targets, batch.counted))


def join_values(names: Sequence[str], batches: Sequence[BatchValues]) -> SequenceValues:
    """The per-sequence values of all batches, by metric."""
    return {name: torch.cat([batch[name] for batch in batches if name in batch]).numpy() for name in names}
