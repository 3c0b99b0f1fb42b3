"""From values per sequence to a score with bootstrap intervals, and paired differences of two models.

numpy, not scipy.stats.bootstrap: scipy has no bootstrap-t, and cannot use one set of resamples for all metrics.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Metric, Score
from compressor.contracts.guard import name_plugin
from compressor.errors import PluginError

Array = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = (2.5, 97.5)
CHUNK = 1 << 22
"""Numbers that one resampling step may hold. A constant: a metric may round differently for other shapes."""
LARGE, UNIT = 1e290, 2.0**64
"""Differences of values that are larger than this may overflow, so they are computed in this unit, which is exact."""
NO_SPREAD = 1e-9
"""A resample whose variance, divided by that of the sample, is at most this has no spread: all its values are equal."""


@functools.lru_cache(maxsize=8)
def draw_resamples(sequences: int, seed: int) -> NDArray[np.intp]:
    """`[resample, sequence]` indices, the same for everything scored on equally many sequences."""
    return np.random.default_rng(seed).integers(0, sequences, size=(RESAMPLES, sequences))


@functools.lru_cache(maxsize=8)
def count_draws(sequences: int, seed: int) -> Array:
    """`[resample, sequence]`: how often each sequence is in each resample of `draw_resamples`."""
    drawn = draw_resamples(sequences, seed)
    places = drawn + sequences * np.arange(len(drawn))[:, None]
    return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def aggregate(metric: Metric, values: Array) -> Array:
    """`[...]`: the metric's values over sequences of `[..., sequence, value]`; raises PluginError unless finite."""
    shown = values.view()
    shown.flags.writeable = False  # a metric that writes into them would change the scores after it
    with np.errstate(all="ignore"):  # a value that is not finite is an error below
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


def aggregate_each(metric: Metric, values: Array) -> Array:
    """`[sequence]`: the metric's value of each sequence alone."""
    return aggregate(metric, values[:, None, :])


def leave_out_each(metric: Metric, values: Array) -> Array:
    """`[sequence]`: the metric's value over all sequences but this one; in all, n (n − 1) sequences are read.

    Of a single sequence it is the value of that one.
    """
    count = len(values)
    if count == 1:
        return aggregate_each(metric, values)
    kept = np.arange(count - 1)
    steps = min(count, max(1, count * kept.size * values.shape[1] // CHUNK))
    return np.concatenate(
        [
            aggregate(metric, values[kept + (kept >= left_out[:, None])])
            for left_out in np.array_split(np.arange(count), steps)
        ]
    )


def find_influence(left_out: Array) -> Array:
    """`[sequence]`: the jackknife's influence of each sequence on a value, u_i = (n − 1)(mean_j θ̂_(−j) − θ̂_(−i)).

    `left_out` `[sequence]` are θ̂_(−i), the values without one sequence. The influence on a mean is the sequence's value
    minus the mean. Influences that rounding alone can make are 0.
    """
    influence: Array = (len(left_out) - 1) * (left_out.mean() - left_out)
    rounding = 8 * len(left_out) * np.finfo(np.float64).eps * np.abs(left_out).max()
    return influence if np.abs(influence).max() > rounding else np.zeros_like(influence)


def bound(value: Array, influence: Array, alone: Array, seed: int) -> tuple[Array, Array]:
    """The ends of the 95 % interval of `value` `[...]` over n sequences, by the bootstrap-t.

        se = sd(u) / √n        t* = mean(u*) / se(u*)        [θ̂ − t*_97.5 se, θ̂ − t*_2.5 se]

    with u the `influence` `[sequence, ...]` of each sequence on θ̂ = `value`, sd with n − 1 in the denominator, and u* a
    resample of u. It is the textbook's interval for the mean of the jackknife's pseudo-values θ̂ + u_i. If θ̂ is a mean,
    these are the values themselves. Otherwise it is right to first order, where θ̂ is a smooth function of means.

    A resample without spread has no t*. It counts as the farthest of all t* on its side. Without such resamples, a
    metric that is the same for most sequences would have an interval with an end at θ̂, on the side where the truth is.

    The interval always holds θ̂, and stays within `alone` `[sequence, ...]`, the values of single sequences. These are
    no limits of the truth: the mean of a geometric FDT is beyond the largest of 8 values in 2.5 % of samples. But they
    keep the interval of a mean within what the metric can be, which is not known here. Without them, of FDT of 64
    tokens with a mean of 19 or 39, one interval in seven over 8 sequences had an end below 0 or above 64, and most
    over 4 were wider than 64; over 16 sequences it was one in 1,200, over 32 none. Two sequences have no t* but 0, and
    one has none: there the interval is that of `alone`, as by the percentile bootstrap.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11 (pseudo-values) and section 12.5;
    Hall, Theoretical comparison of bootstrap confidence intervals, 1988. docs/benchmarks.md has the coverage.
    """
    count = len(influence)
    least, most = np.minimum(alone.min(axis=0), value), np.maximum(alone.max(axis=0), value)
    if count < 3:
        return least, most
    size = np.abs(influence).max(axis=0)
    scaled = influence / np.where(size > 0, size, 1.0)  # squares of the largest and the smallest floats are none
    spread = scaled.std(axis=0, ddof=1)
    scaled /= np.where(spread > 0, spread, 1.0)
    draws = count_draws(count, seed)
    means = draws @ scaled / count
    variances = draws @ scaled**2 / count - means**2
    known = variances > NO_SPREAD
    ratios = means / np.sqrt(np.where(known, variances, 1.0) / (count - 1))
    farthest = np.abs(np.where(known, ratios, 0.0)).max(axis=0)
    ratios = np.where(known, ratios, np.sign(means) * farthest)
    upper, lower = np.percentile(ratios, LEVEL, axis=0) * (size * spread / np.sqrt(count))
    return np.clip(value - lower, least, value), np.clip(value - upper, value, most)


def summarize(metric: Metric, values: Array, seed: int = 0) -> Score:
    """Aggregate `values` `[sequence, value]`; the interval of the value is a bootstrap-t over sequences (`bound`).

    That of the 75th percentile is by percentiles (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
    13), because the jackknife has no standard error for it. With one sequence both are that one value.
    """
    if values.ndim != 2 or not np.isfinite(values).all():
        raise PluginError(
            f"{name_plugin(metric)} gave values of shape {values.shape} with "
            f"{int((~np.isfinite(values)).sum())} non-finite values; [sequence, value] and finite are needed"
        )
    single, value = aggregate_each(metric, values), aggregate(metric, values)
    left_out = leave_out_each(metric, values)
    unit = find_unit(single, value, left_out)
    single, value = single / unit, value / unit
    low, high = bound(value, find_influence(left_out / unit), single, seed)
    resamples = draw_resamples(len(single), seed)
    chunks = np.array_split(resamples, max(1, resamples.size // CHUNK))
    p75_low, p75_high = np.percentile(np.concatenate([np.percentile(single[i], 75, axis=1) for i in chunks]), LEVEL)
    p25, median, p75 = np.percentile(single, (25, 50, 75))
    return Score(
        mean=unit * float(value),
        median=unit * float(median),
        p25=unit * float(p25),
        p75=unit * float(p75),
        min=unit * float(single.min()),
        max=unit * float(single.max()),
        low=unit * float(low),
        high=unit * float(high),
        p75_low=unit * float(p75_low),
        p75_high=unit * float(p75_high),
        n=len(single),
    )


def find_unit(*values: Array) -> float:
    """The unit in which differences of these values, and sums of a few, are finite: 1 unless a value is very large."""
    return UNIT if max(float(np.abs(each).max()) for each in values) > LARGE else 1.0


def compare_paired(metric: Metric, first: Array, second: Array, seed: int = 0) -> tuple[float, float, float]:
    """Value of `first` minus value of `second` on the same sequences, with its 95 % interval by the bootstrap-t.

    Both are `[sequence, value]`; a sequence is left out of both, and is resampled in both.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired values must have one shape, got {first.shape} and {second.shape}")
    difference = aggregate(metric, first) - aggregate(metric, second)
    influence = find_influence(leave_out_each(metric, first) - leave_out_each(metric, second))
    low, high = bound(difference, influence, aggregate_each(metric, first) - aggregate_each(metric, second), seed)
    return float(difference), float(low), float(high)
