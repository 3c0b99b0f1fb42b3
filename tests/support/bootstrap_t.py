"""The bootstrap-t as a plain loop over resamples, and the percentile bootstrap with which it is compared."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Metric
from compressor.evaluation.bootstrap import draw_resamples


def studentize(value: float, left_out: Sequence[float], seed: int) -> tuple[float, float]:
    """The 95 % interval of `value` from its values without each sequence, for three sequences or more.

    It has no limits, and a resample in which all pseudo-values are equal counts as the farthest on its side.
    """
    count, center = len(left_out), statistics.fmean(left_out)
    pseudo = [value + (count - 1) * (center - other) for other in left_out]
    ratios: list[float] = []
    sides: list[float] = []
    for indices in draw_resamples(count, seed).tolist():
        drawn = [pseudo[index] for index in indices]
        moved = statistics.fmean(drawn) - value
        if math.isclose(min(drawn), max(drawn), rel_tol=1e-12):
            sides.append(math.copysign(1.0, moved) if abs(moved) > 1e-12 else 0.0)
        else:
            ratios.append(moved / (statistics.stdev(drawn) / math.sqrt(count)))
    farthest = max(abs(ratio) for ratio in ratios)
    low, high = find_percentiles(ratios + [side * farthest for side in sides])
    error = statistics.stdev(pseudo) / math.sqrt(count)
    return value - high * error, value - low * error


def find_percentiles(numbers: Sequence[float]) -> tuple[float, float]:
    """The 2.5th and the 97.5th, interpolated linearly."""
    ordered = sorted(numbers)

    def find(share: float) -> float:
        place = share * (len(ordered) - 1)
        left = math.floor(place)
        right = min(left + 1, len(ordered) - 1)
        return ordered[left] + (place - left) * (ordered[right] - ordered[left])

    return find(0.025), find(0.975)


def bound_by_percentiles(metric: Metric, values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval by the percentile bootstrap."""
    low, high = np.percentile(metric.aggregate(values[draw_resamples(len(values), 0)]), (2.5, 97.5))
    return float(low), float(high)
