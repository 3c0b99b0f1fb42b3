"""Curves amount -> goodness, and the common level at which they meet a budget. Pure functions of numpy arrays.

A set of curves is two arrays `[component, point]`: amounts that do not decrease along a row, and the goodness there,
which does not increase; in between a curve is straight, and a step is two points of one amount.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def make_non_increasing(goodness: Array) -> Array:
    """The running minimum along each row: more of a treatment is never better, whatever the noise says."""
    smooth: Array = np.minimum.accumulate(goodness, axis=-1)
    return smooth


def replace_non_finite(goodness: Array) -> Array:
    """The worst finite value in place of values that are not finite: a broken model has no level of its own."""
    finite = np.isfinite(goodness)
    return np.where(finite, goodness, goodness[finite].min() if finite.any() else 0.0)


def cut_curves(amounts: Array, goodness: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The curves restricted to [low, high] `[component]`: points beyond are moved to the border of their curve."""
    inside = np.clip(amounts, low[:, None], high[:, None])
    values = [np.interp(*row) for row in zip(inside, amounts, goodness, strict=True)]
    return inside, np.where(inside == amounts, goodness, np.reshape(values, goodness.shape))


def read_off(amounts: Array, goodness: Array, level: float, past_plateau: bool) -> Array:
    """The amount `[component]` at which each curve is at `level`: the end of a plateau there, else its beginning.

    A curve that begins below the level is read at its beginning, one that ends above it at its end.
    """
    above = goodness >= level if past_plateau else goodness > level
    after = above.sum(axis=1)
    right = np.clip(after, 1, goodness.shape[1] - 1)[:, None]
    x0, x1 = np.take_along_axis(amounts, right - 1, 1), np.take_along_axis(amounts, right, 1)
    y0, y1 = np.take_along_axis(goodness, right - 1, 1), np.take_along_axis(goodness, right, 1)
    drop = np.where(y0 > y1, y0 - y1, 1.0)
    between = (x0 + (y0 - level) / drop * (x1 - x0))[:, 0]
    crossing: Array = np.where(after == 0, amounts[:, 0], np.where(after == goodness.shape[1], amounts[:, -1], between))
    return crossing


def fill(amounts: Array, goodness: Array, weights: Array, target: float) -> Array:
    """Amounts `[component]` whose mean by `weights` is `target` and whose worst goodness is the best possible.

    max_a min_c goodness_c(a_c)  subject to  sum_c weights_c a_c = target sum_c weights_c

    The solution is a water level: lower it, read every curve off, stop when the mean reaches the target. Amounts move
    straight between the levels at which some curve bends, so bisection needs to look at those only, on both sides of
    their plateaus, and the last step is a straight line, also across plateaus. A target that the ends of the curves
    do not enclose gives the nearer ends.
    """
    levels = np.unique(goodness)[::-1]

    def read_stop(stop: int) -> tuple[Array, float]:
        found = read_off(amounts, goodness, float(levels[stop // 2]), past_plateau=stop % 2 == 1)
        return found, float(weights @ found / weights.sum())

    above, below = 0, 2 * len(levels) - 1
    while below - above > 1:
        middle = (above + below) // 2
        if read_stop(middle)[1] < target:
            above = middle
        else:
            below = middle
    (fewer, low), (more, high) = read_stop(above), read_stop(below)
    share = (target - low) / (high - low) if high > low else 0.0
    return fewer + min(max(share, 0.0), 1.0) * (more - fewer)
