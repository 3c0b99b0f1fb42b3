"""The best amounts under a budget, when costs add up: lower convex hulls and one common slope. Pure numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Curves:
    """What each point costs and stores, `[unit, point]`; a unit is a component, or a row of one.

    Along a row, amounts do not decrease and sizes do not increase.
    """

    amounts: Array
    sizes: Array
    costs: Array


def share_slope(curves: Curves, limit: float) -> Array:
    """Amounts `[unit]` that minimise the sum of costs with a sum of sizes of at most `limit`.

    On lower convex hulls the best allocation has one slope (cost per size saved) everywhere: take the steps from
    vertex to vertex in the order of their slopes until the sizes fit. Steps that lower the cost are taken in any case.
    All units but one end at a vertex, which is a point that was asked for; the one between two vertices is where the
    hull may flatter. A limit that the last points do not reach gives the last points.

    Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, IEEE TASSP 1988.
    """
    saved = curves.sizes[:, :1] - curves.sizes
    start, units, left, right, slopes = find_steps(saved, curves.costs)
    order = np.argsort(slopes, kind="stable")
    units, left, right, slopes = units[order], left[order], right[order], slopes[order]
    lengths = saved[units, right] - saved[units, left]
    needed = float(curves.sizes[:, 0].sum()) - limit - float(saved[np.arange(len(saved)), start].sum())
    reached = np.cumsum(lengths)
    count = int(np.searchsorted(reached, needed)) if needed > 0 else 0
    place = start.astype(np.float64)
    np.maximum.at(place, units[:count], right[:count])
    amounts = curves.amounts[np.arange(len(place)), place.astype(np.intp)]
    if count < len(units) and needed > 0:
        unit, before = units[count], reached[count - 1] if count else 0.0
        share = (needed - before) / lengths[count]
        low, high = curves.amounts[unit, left[count]], curves.amounts[unit, right[count]]
        amounts[unit] = low + share * (high - low)
    return amounts


def find_steps(saved: Array, costs: Array) -> tuple[Indices, Indices, Indices, Indices, Array]:
    """The cheapest point of each unit `[unit]`, and all steps along the hulls that save more than it.

    A step has a unit, the points where it begins and ends, and its slope, which increases along a unit. Of points that
    cost the same the one that saves more counts.
    """
    count, points = costs.shape
    every = np.arange(count)
    start = points - 1 - np.argmin(costs[:, ::-1], axis=1)
    place, found = start.copy(), []
    while True:
        gain = saved - saved[every, place][:, None]
        rise = costs - costs[every, place][:, None]
        slopes = np.where(gain > 0, rise / np.where(gain > 0, gain, 1.0), np.inf)
        best = points - 1 - np.argmin(slopes[:, ::-1], axis=1)
        slope = slopes[every, best]
        moving = np.isfinite(slope)
        if not moving.any():
            break
        found.append((every[moving], place[moving], best[moving], slope[moving]))
        place = np.where(moving, best, place)
    units, left, right = (
        np.concatenate([np.empty(0, np.intp), *(step[index] for step in found)]) for index in range(3)
    )
    return start, units, left, right, np.concatenate([np.empty(0), *(step[3] for step in found)])
