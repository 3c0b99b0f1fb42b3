"""Water-filling: amounts that meet a budget at a common level of curves amount -> goodness. Pure numpy functions.

A set of curves is two arrays `[component, point]`: amounts that do not decrease along a row, and the goodness there,
which does not increase. A curve is linear between its points. Two points with the same amount are a step.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def make_non_increasing(goodness: Array) -> Array:
    """The running minimum along each row. A larger amount is never better, so an increase is noise."""
    smooth: Array = np.minimum.accumulate(goodness, axis=-1)
    return smooth


def replace_non_finite(goodness: Array) -> Array:
    """Replaces values that are not finite (of a broken model) by the worst finite value."""
    finite = np.isfinite(goodness)
    return np.where(finite, goodness, goodness[finite].min() if finite.any() else 0.0)


def cut_curves(amounts: Array, goodness: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The curves restricted to [low, high] `[component]`. Points outside are moved to the nearer end."""
    inside = np.clip(amounts, low[:, None], high[:, None])
    values = [np.interp(*row) for row in zip(inside, amounts, goodness, strict=True)]
    return inside, np.where(inside == amounts, goodness, np.reshape(values, goodness.shape))


def read_off(amounts: Array, goodness: Array, level: float, past_plateau: bool) -> Array:
    """The amount `[component]` at which each curve has `level`: on a plateau its end if `past_plateau`, else its start.

    A curve that starts below the level gives its first amount; one that ends above it gives its last amount.
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

    The solution is a water level: lower it until the mean of the amounts at this level reaches the target. Between the
    levels of two neighbouring points of the curves, amounts are linear in the level. So bisection only tries the levels
    of points, at the start and at the end of their plateaus, and the last step is a linear interpolation. A target
    outside the range of the curves gives the nearer end of each curve.
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
