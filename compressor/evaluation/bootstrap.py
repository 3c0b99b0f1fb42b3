"""From values per sequence to a score with bootstrap intervals, and paired differences of two models.

numpy, not scipy.stats.bootstrap: with the same resamples that gives intervals that differ in the last bit, takes four
times as long and twice the memory, and cannot use one set of resamples for all metrics.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Metric, Score
from compressor.contracts.guard import name_plugin
from compressor.errors import PluginError

RESAMPLES = 1000
LEVEL = (2.5, 97.5)
CHUNK = 1 << 22
"""Numbers that one resampling step may hold. A constant: a metric may round differently for other shapes."""


@functools.lru_cache(maxsize=8)
def draw_resamples(sequences: int, seed: int) -> NDArray[np.intp]:
    """`[resample, sequence]` indices, the same for everything scored on equally many sequences."""
    return np.random.default_rng(seed).integers(0, sequences, size=(RESAMPLES, sequences))


def aggregate(metric: Metric, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[...]`: the metric's values over sequences of `[..., sequence, value]`; raises PluginError unless finite."""
    shown = values.view()
    shown.flags.writeable = False  # a metric that writes into them would change the scores after it
    found = metric.aggregate(shown)
    try:
        numbers = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise PluginError(
            f"`aggregate` of {name_plugin(metric)} gave {type(found).__name__}, which holds no numbers; "
            "give an array of them"
        ) from None
    if numbers.shape != values.shape[:-2]:
        raise PluginError(
            f"`aggregate` of {name_plugin(metric)} gave shape {numbers.shape} for values {values.shape}; "
            f"{values.shape[:-2]} is needed"
        )
    if not np.isfinite(numbers).all():
        raise PluginError(f"`aggregate` of {name_plugin(metric)} gave NaN or infinity for finite values; mend it")
    return numbers


def aggregate_each(metric: Metric, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[sequence]`: the metric's value of each sequence alone."""
    return aggregate(metric, values[:, None, :])


def summarize(metric: Metric, values: NDArray[np.float64], seed: int = 0) -> Score:
    """Aggregate `values` `[sequence, value]`; intervals by the percentile bootstrap over sequences.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. With one sequence the interval
    is that one value.
    """
    if values.ndim != 2 or not np.isfinite(values).all():
        raise PluginError(
            f"{name_plugin(metric)} gave values of shape {values.shape} with "
            f"{int((~np.isfinite(values)).sum())} non-finite values; [sequence, value] and finite are needed"
        )
    single = aggregate_each(metric, values)
    resamples = draw_resamples(len(single), seed)
    means, p75s = [], []
    for indices in np.array_split(resamples, max(1, resamples.size * values.shape[1] // CHUNK)):
        means.append(aggregate(metric, values[indices]))
        p75s.append(np.percentile(single[indices], 75, axis=1))
    low, high = np.percentile(np.concatenate(means), LEVEL)
    p75_low, p75_high = np.percentile(np.concatenate(p75s), LEVEL)
    p25, median, p75 = np.percentile(single, (25, 50, 75))
    return Score(
        mean=float(aggregate(metric, values)),
        median=float(median),
        p25=float(p25),
        p75=float(p75),
        min=float(single.min()),
        max=float(single.max()),
        low=float(low),
        high=float(high),
        p75_low=float(p75_low),
        p75_high=float(p75_high),
        n=len(single),
    )


def compare_paired(
    metric: Metric, first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0
) -> tuple[float, float, float]:
    """Value of `first` minus value of `second` on the same sequences, with its bootstrap 95 % interval.

    Both are `[sequence, value]`; sequences are resampled as pairs.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired values must have one shape, got {first.shape} and {second.shape}")
    resamples = draw_resamples(len(first), seed)
    differences = aggregate(metric, first[resamples]) - aggregate(metric, second[resamples])
    low, high = np.percentile(differences, LEVEL)
    return float(aggregate(metric, first) - aggregate(metric, second)), float(low), float(high)
