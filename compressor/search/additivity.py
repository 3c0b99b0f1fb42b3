"""Additivity ratio: sum of the effects of single treatments divided by the effect of the whole plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import EstimableMetric, Metric
from compressor.evaluation.evaluator import SequenceValues


@dataclass
class StartingValues:
    """First values per sequence of metrics at the start of the round, on the search prefixes measured so far."""

    metrics: Mapping[str, Metric]
    known: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, metric: str, start: int, values: NDArray[np.float64]) -> None:
        """Add values measured on the prefixes from `start` on; those of a metric on text are for the whole text."""
        first = 0 if self.metrics[metric].text() is not None else start
        held = self.known.get(metric, np.empty(0))
        if first <= len(held) < first + len(values):  # no prefix in between is missing, and at least one is new
            held = np.concatenate([held[:first], values])
        self.known[metric] = held

    def close_round(self, singles: Mapping[str, float], values: SequenceValues) -> float | None:
        """The additivity ratio of the plan that was kept; its values become the starting values of the next round.

        `singles` are sums of single effects by metric, `values` the values of the model with the plan. Only prefixes
        with known starting values count; an estimable metric is 0 on the base. None if no metric got worse or no
        starting values are known.
        """
        started, self.known = self.known, {name: rows[:, 0] for name, rows in values.items()}
        for name, total in singles.items():
            after, metric = self.known[name], self.metrics[name]
            before = started.get(name, np.zeros(len(after) if isinstance(metric, EstimableMetric) else 0))
            change = float((after[: len(before)] - before).sum()) / max(1, len(before))
            if metric.better.sign * change < 0:
                return total / change
        return None
