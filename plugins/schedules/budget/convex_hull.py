"""The best amounts under a budget, when costs add up: lower convex hulls and one common slope. Pure numpy."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Curves:
    """What each point costs and stores, `[unit, point]`; a unit is a component, or a row of one.

    Along a row, amounts do not decrease and sizes do not increase; between two points a size is linear in the amount.
    """

    amounts: Array
    sizes: Array
    costs: Array


class Steps(NamedTuple):
    """Steps along the hulls, `[step]`: of which unit, from which point to which, what they save and cost per saving."""

    units: Indices
    left: Indices
    right: Indices
    saved: Array
    slopes: Array


class PartialStep(NamedTuple):
    """The one step of which only a share in (0, 1) is needed."""

    unit: int
    left: int
    right: int
    share: float


def share_slope(curves: Curves, limit: float) -> Array:
    """Amounts `[unit]` that minimise the sum of costs with a sum of sizes of at most `limit`.

    On lower convex hulls the best allocation has one slope (cost per size saved) everywhere: take the steps from
    vertex to vertex in the order of their slopes until the sizes fit. Steps that lower the cost are taken in any case.
    All units but one end at a vertex, which is a point that was asked for; the one between two vertices is where the
    hull may flatter. A limit that the last points do not reach gives the last points.

    Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, IEEE TASSP 1988.
    """
    places, partial = take_steps(curves, limit)
    amounts: Array = curves.amounts[np.arange(len(places)), places]
    if partial is not None:
        low, high = curves.amounts[partial.unit, partial.left], curves.amounts[partial.unit, partial.right]
        amounts[partial.unit] = low + partial.share * (high - low)
    return amounts


def take_steps(curves: Curves, limit: float) -> tuple[Indices, PartialStep | None]:
    """The vertex of each unit `[unit]` after all steps that are needed whole, and the step that is needed in part."""
    places, steps = find_steps(curves)
    reached = np.cumsum(steps.saved)
    needed = float(curves.sizes[np.arange(len(places)), places].sum()) - limit
    whole = int(np.searchsorted(reached, needed, side="right"))
    np.maximum.at(places, steps.units[:whole], steps.right[:whole])
    rest = needed - (float(reached[whole - 1]) if whole else 0.0)
    if rest <= 0 or whole == len(reached):
        return places, None
    share = rest / float(steps.saved[whole])
    return places, PartialStep(int(steps.units[whole]), int(steps.left[whole]), int(steps.right[whole]), share)


def find_steps(curves: Curves) -> tuple[Indices, Steps]:
    """The cheapest point of each unit `[unit]`, and all steps along the hulls that save more, by increasing slope.

    Of points that cost the same the one that saves more counts.
    """
    count, points = curves.costs.shape
    every = np.arange(count)
    start = points - 1 - np.argmin(curves.costs[:, ::-1], axis=1)
    places, flattest = start.copy(), np.zeros(count)
    found = [Steps(every[:0], every[:0], every[:0], np.empty(0), np.empty(0))]
    while True:
        saved = curves.sizes[every, places][:, None] - curves.sizes
        rise = curves.costs - curves.costs[every, places][:, None]
        slopes = np.where(saved > 0, rise / np.where(saved > 0, saved, 1.0), np.inf)
        best = points - 1 - np.argmin(slopes[:, ::-1], axis=1)
        # On a straight line rounding must not put a unit's second step before its first.
        flattest = np.maximum(flattest, slopes[every, best])
        moving = np.isfinite(slopes[every, best])
        if not moving.any():
            break
        lengths = saved[every, best]
        found.append(Steps(every[moving], places[moving], best[moving], lengths[moving], flattest[moving]))
        places = np.where(moving, best, places)
    units, left, right = (np.concatenate([step[column] for step in found]) for column in range(3))
    lengths, slope = (np.concatenate([step[column] for step in found]) for column in (3, 4))
    order = np.argsort(slope, kind="stable")
    return start, Steps(units[order], left[order], right[order], lengths[order], slope[order])
