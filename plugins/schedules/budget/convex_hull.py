"""The best amounts within a budget if costs add up: lower convex hulls and one common slope. Pure numpy."""

from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Curves:
    """The cost and the size of each point, `[unit, point]`; a unit is a component, or a row of one.

    Along a row, amounts do not decrease and sizes do not increase. Between two points size is linear in the amount.
    """

    amounts: Array
    sizes: Array
    costs: Array


class Steps(NamedTuple):
    """Steps along the hulls, `[step]`: unit, start point, end point, size saved, and cost per size saved (`slopes`)."""

    units: Indices
    left: Indices
    right: Indices
    saved: Array
    slopes: Array


class PartialStep(NamedTuple):
    """The last step, of which only a share in (0, 1) is taken."""

    unit: int
    left: int
    right: int
    share: float


def share_slope(curves: Curves, limit: float) -> Array:
    """Amounts `[unit]` that minimise the sum of costs with a sum of sizes of just `limit`, as far as amounts reach.

    On lower convex hulls the best allocation has the same slope (cost per size saved) everywhere. So steps from vertex
    to vertex are taken in the order of their slopes until the sizes fit, from the largest size of each unit on. Sizes
    are not below the limit even where that seems to lower the cost: a model that loses more says nothing better, so
    such costs are errors of the estimate.
    All units except one end at a vertex, which is one of the given points. The hull may underestimate the cost of the
    one unit that ends between two vertices. If the limit is out of reach, each unit gets its last point.

    Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, IEEE TASSP 1988.
    """
    largest = curves.sizes == curves.sizes.max(axis=1, keepdims=True)
    places, partial = take_steps(curves, limit, np.where(largest, curves.costs, np.inf).argmin(axis=1))
    amounts: Array = curves.amounts[np.arange(len(places)), places]
    if partial is not None:
        low, high = curves.amounts[partial.unit, partial.left], curves.amounts[partial.unit, partial.right]
        amounts[partial.unit] = low + partial.share * (high - low)
    return amounts


def take_steps(curves: Curves, limit: float, start: Indices) -> tuple[Indices, PartialStep | None]:
    """The vertex of each unit `[unit]` after all whole steps, and the last step if only a part of it is needed.

    `start` `[unit]` are the points at which steps begin.
    """
    places, steps = start.copy(), find_steps(curves, start)
    reached = np.cumsum(steps.saved)
    needed = float(curves.sizes[np.arange(len(places)), places].sum()) - limit
    whole = int(np.searchsorted(reached, needed, side="right"))
    np.maximum.at(places, steps.units[:whole], steps.right[:whole])
    rest = needed - (float(reached[whole - 1]) if whole else 0.0)
    if rest <= 0 or whole == len(reached):
        return places, None
    share = rest / float(steps.saved[whole])
    return places, PartialStep(int(steps.units[whole]), int(steps.left[whole]), int(steps.right[whole]), share)


def find_cheapest(curves: Curves) -> Indices:
    """The cheapest point of each unit `[unit]`; among points of equal cost the smallest one."""
    found: Indices = curves.costs.shape[1] - 1 - np.argmin(curves.costs[:, ::-1], axis=1)
    return found


def find_steps(curves: Curves, start: Indices) -> Steps:
    """All steps along the hull of each unit from the point `start` `[unit]` on, by increasing slope."""
    count, points = curves.costs.shape
    every = np.arange(count)
    places, flattest = start.copy(), np.full(count, -np.inf)
    found = [Steps(every[:0], every[:0], every[:0], np.empty(0), np.empty(0))]
    while True:
        saved = curves.sizes[every, places][:, None] - curves.sizes
        rise = curves.costs - curves.costs[every, places][:, None]
        slopes = np.where(saved > 0, rise / np.where(saved > 0, saved, 1.0), np.inf)
        best = points - 1 - np.argmin(slopes[:, ::-1], axis=1)
        # On a straight line, rounding must not put the second step of a unit before its first.
        flattest = np.maximum(flattest, slopes[every, best])
        moving = np.isfinite(slopes[every, best])
        if not moving.any():
            break
        lengths = saved[every, best]
        found.append(Steps(every[moving], places[moving], best[moving], lengths[moving], flattest[moving]))
        places = np.where(moving, best, places)
    steps = Steps(*map(np.concatenate, zip(*found, strict=True)))
    order = np.argsort(steps.slopes, kind="stable")
    return Steps(*map(itemgetter(order), steps))
