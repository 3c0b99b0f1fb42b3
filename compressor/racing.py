"""Which trials cannot be among the best any more: pure decisions on the sequences that were scored so far. Torch-free.

A trial is beaten when each of the `count` best so far is better than it by more than the error that a difference of
two trials on the same n sequences may have (or would be with `tolerance` of its value more). With k looks at T trials,
an error level of

    ε = δ / (count · (T − 1) · k)

for each comparison keeps all of the truly best with probability 1 − δ, by the union over all that could go wrong:
to drop one of them, some trial must have looked better than it at some look without being so.

How large the error of a difference d may be at level ε:

- The mean of values in [a, b], without any assumption: Maurer and Pontil, "Empirical Bernstein bounds and sample
  variance penalization", COLT 2009, theorem 4, for differences, whose range is 2 (b − a) wide; V is their variance:

      √(2 V ln(2/ε) / n) + 7 · 2 (b − a) ln(2/ε) / (3 (n − 1))

- Any other aggregate, an approximation: t · s with Student's quantile t of n − 1 degrees of freedom and the
  standard error s of d, as if d were normal. s is the jackknife's (Tukey, 1958), exact for a mean, or, for
  percentiles, where that fails, the bootstrap's (Efron and Tibshirani, 1993, chapter 6).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Metric
from compressor.evaluation.bootstrap import CHUNK, draw_resamples, values_per_sequence

Array = NDArray[np.float64]
FIRST_BLOCK = 8
"""Sequences before the first look; every block doubles them."""
RESAMPLES = 200
"""Enough for a standard error."""
PERCENTILES = {"min": 0.0, "p25": 25.0, "median": 50.0, "p75": 75.0, "max": 100.0}
"""The statistics of a score besides its mean."""


@dataclass(frozen=True)
class Contender:
    """A trial on the sequences so far: `value`, the larger the better, and what it would be on samples like these.

    The standard error of a difference is `scale` times the standard deviation of the difference of `replicates`.
    """

    value: float
    replicates: Array
    scale: float


@dataclass(frozen=True)
class Race:
    """The best `count` are looked for; each comparison may be wrong with probability `level`.

    `width` is that of the range of a sequence's value, None where only the approximation holds. What is better than
    another by less than `tolerance` of that one's value counts as no better.
    """

    count: int
    level: float
    width: float | None = None
    tolerance: float = 0.0

    def find_beaten(self, contenders: list[Contender], sequences: int) -> NDArray[np.bool_]:
        """`[contender]`: those that cannot be among the best; never one of the `count` best so far."""
        beaten = np.full(len(contenders), len(contenders) > self.count and sequences > 1)
        if not beaten.any():
            return beaten
        values = np.array([contender.value for contender in contenders])
        replicates = np.stack([contender.replicates for contender in contenders])
        leaders = np.argsort(-values, kind="stable")[: self.count]
        for leader in leaders:
            errors = contenders[0].scale * (replicates[leader] - replicates).std(axis=1)
            lead = values[leader] + self.tolerance * abs(values[leader])
            beaten &= lead - values > self.reach(errors, sequences)
        beaten[leaders] = False
        return beaten

    def reach(self, errors: Array, sequences: int) -> Array:
        """How far differences with these standard errors, on so many sequences, may be off."""
        from scipy.special import stdtrit  # heavy, and not always needed

        if self.width is None:
            quantiles: Array = stdtrit(sequences - 1, 1 - self.level) * errors
            return quantiles
        logarithm = np.log(2 / self.level)
        bounds: Array = np.sqrt(2 * logarithm) * errors + 14 * self.width * logarithm / (3 * (sequences - 1))
        return bounds


def make_race(
    count: int, trials: int, looks: int, delta: float, width: float | None = None, tolerance: float = 0.0
) -> Race:
    """A race in which the truly best are all kept with probability 1 − `delta`, but for what is no better."""
    return Race(count, delta / max(1, count * (trials - 1) * looks), width, tolerance)


def list_stops(sequences: int) -> list[int]:
    """Where blocks of sequences end: 8, 16, 32, … and all."""
    stops = []
    stop = FIRST_BLOCK
    while stop < sequences:
        stops.append(stop)
        stop *= 2
    return [*stops, sequences]


def make_contender(metric: Metric, statistics: Array, statistic: str, seed: int = 0) -> Contender:
    """From statistics per sequence `[sequence, statistic]`, and the `statistic` of the score that decides."""
    sign, count = metric.better.sign, len(statistics)
    if statistic != "mean":
        percent, values = PERCENTILES[statistic], values_per_sequence(metric, statistics)
        samples = values[draw_resamples(count, seed)[:RESAMPLES]]
        replicates = np.percentile(samples, percent, axis=1)
        return Contender(sign * float(np.percentile(values, percent)), sign * replicates, 1.0)
    value = sign * float(metric.aggregate(statistics))
    return Contender(value, sign * leave_each_out(metric, statistics), max(0, count - 1) ** 0.5)


def leave_each_out(metric: Metric, statistics: Array) -> Array:
    """`[sequence]`: the metric's value without each one of the sequences; of a single one that value itself."""
    count = len(statistics)
    if count == 1:
        return metric.aggregate(statistics[None])
    others = np.arange(count - 1)[None, :] + (np.arange(count - 1)[None, :] >= np.arange(count)[:, None])
    parts = np.array_split(others, max(1, others.size * statistics.shape[1] // CHUNK))
    return np.concatenate([metric.aggregate(statistics[rows]) for rows in parts])
