"""What rows of a table say of values on fresh prefixes: values, and differences that are paired by prefix."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Metric
from compressor.evaluation.bootstrap import LEVEL, aggregate_each, compare_paired, draw_resamples, summarize
from compressor.evaluation.evaluator import SequenceValues
from compressor.plugins import installed

METRICS = ("fdtm", "sdtm", "kl", "perplexity")
"""What `describe` needs values of."""
Cell = list[float]
"""A value, and its 95 % interval."""


def describe(found: Sequence[SequenceValues]) -> dict[str, Cell]:
    """FDT, FDT75 and the rest, over the sequences of all these together."""
    cells = {}
    for name, metric in load_metrics().items():
        score = summarize(metric, join(found, name))
        cells[name] = [score.mean, score.low, score.high]
        if name == "fdtm":
            cells["FDT75"] = [score.p75, score.p75_low, score.p75_high]
    return cells


def compare(found: Sequence[SequenceValues], others: Sequence[SequenceValues]) -> dict[str, Cell]:
    """The same of `found` minus that of `others`, which are of the same sequences, paired."""
    cells = {}
    for name, metric in load_metrics().items():
        first, second = join(found, name), join(others, name)
        cells[name] = list(compare_paired(metric, first, second))
        if name == "fdtm":
            cells["FDT75"] = compare_p75(aggregate_each(metric, first), aggregate_each(metric, second))
    return cells


def count_verdicts(rows: Iterable[Mapping[str, Any]], kind: str, baseline: str) -> Iterator[dict[str, Any]]:
    """For each value of the column `kind`: in how many rows each metric is better, worse or level with the baseline.

    Differences are those of `compare`, named `metric − baseline`. A row is level where the interval contains 0.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for column, cell in row.items():
            name, minus, other = column.partition(" − ")
            if minus and other == baseline:
                sign = installed().metrics["fdtm" if name == "FDT75" else name].better.sign
                low, high = sorted(sign * end for end in cell[1:])
                for key in ((row[kind], name), (row[kind], "all")):
                    count = counts.setdefault(key, [0, 0, 0])
                    count[0 if low > 0 else 1 if high < 0 else 2] += 1
    for (which, name), (better, worse, tied) in counts.items():
        yield {kind: which, f"against {baseline}": name, "better": better, "worse": worse, "tied": tied}


def compare_p75(first: NDArray[np.float64], second: NDArray[np.float64]) -> Cell:
    """The difference of two 75th percentiles over the same sequences, resampled as pairs."""
    resamples = draw_resamples(len(first), 0)
    differences = np.percentile(first[resamples], 75, axis=1) - np.percentile(second[resamples], 75, axis=1)
    low, high = np.percentile(differences, LEVEL)
    return [float(np.percentile(first, 75) - np.percentile(second, 75)), float(low), float(high)]


def join(found: Sequence[SequenceValues], name: str) -> NDArray[np.float64]:
    """`[sequence, value]` of all, one after the other."""
    return np.concatenate([values[name] for values in found])


def load_metrics() -> Mapping[str, Metric]:
    return {name: installed().metrics[name]() for name in METRICS}
