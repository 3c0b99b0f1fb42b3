"""Sharing a budget by slope: it is met, no other choice of that size is better, one unit at most is between points."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor_plugins.schedules.budget.convex_hull import (
    Array,
    Curves,
    find_cheapest,
    find_steps,
    share_slope,
)

SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.floats(0.0, 1.0)
SHAPES = ("convex", "any", "linear", "flat", "falling")


def make_curves(seed: int, shape: str, repeated: bool = False) -> Curves:
    """Some units of different weights; costs of the shape that is named, and points that are given twice."""
    rng = np.random.default_rng(seed)
    units, points = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    amounts = np.sort(rng.random((units, points)), axis=1)
    if repeated:
        amounts = np.sort(np.round(3 * amounts) / 3, axis=1)
    weights, scale = rng.integers(1, 50, (units, 1)), rng.lognormal(0, 2, (units, 1))
    costs = {
        "convex": scale * amounts**2,
        "any": scale * rng.normal(size=amounts.shape),
        "linear": rng.choice([1.0, 3.0], (units, 1)) * weights * amounts,
        "flat": 0 * amounts,
        "falling": -scale * amounts**2,
    }[shape]
    return Curves(amounts, weights * (1 - amounts), costs)


def interpolate(curves: Curves, amounts: Array, values: Array) -> float:
    """The sum of a value at some amounts `[unit]`, on straight lines between points."""
    return sum(float(np.interp(a, x, y)) for a, x, y in zip(amounts, curves.amounts, values, strict=True))


def hull_cost(curves: Curves, unit: int, amount: float) -> float:
    """The lower convex hull of a unit's points, from its definition: the least over all pairs of points."""
    x, y = curves.amounts[unit], curves.costs[unit]
    found = [c for a, c in zip(x, y, strict=True) if abs(a - amount) <= 1e-12]
    for (a, c), (b, d) in itertools.permutations(zip(x, y, strict=True), 2):
        if a < amount < b:
            found.append(c + (amount - a) / (b - a) * (d - c))
    return float(min(found))


def cost_of(curves: Curves, amounts: Array) -> float:
    return sum(hull_cost(curves, unit, amount) for unit, amount in enumerate(amounts.tolist()))


def limit_between(curves: Curves, share: float) -> float:
    """From where the last points fit to where all points do."""
    least, most = curves.sizes.min(axis=1).sum(), curves.sizes.max(axis=1).sum()
    return float(least + share * (most - least))


@settings(deadline=None, max_examples=200)
@given(SEEDS, st.sampled_from(SHAPES), st.booleans(), SHARES)
def test_the_limit_is_met_and_no_choice_of_points_of_that_size_is_better(
    seed: int, shape: str, repeated: bool, share: float
) -> None:
    curves = make_curves(seed, shape, repeated)
    limit = limit_between(curves, share)
    found = share_slope(curves, limit)
    assert interpolate(curves, found, curves.sizes) == pytest.approx(limit, rel=1e-9, abs=1e-12)
    units, points = curves.costs.shape
    for places in np.random.default_rng(seed + 1).integers(0, points, (50, units)):
        size, cost = (values[range(units), places].sum() for values in (curves.sizes, curves.costs))
        assert cost_of(curves, share_slope(curves, size)) <= cost + 1e-9 * np.abs(curves.costs).sum()


@settings(deadline=None, max_examples=100)
@given(SEEDS, st.sampled_from(SHAPES), st.booleans(), SHARES)
def test_all_units_but_one_end_at_points(seed: int, shape: str, repeated: bool, share: float) -> None:
    curves = make_curves(seed, shape, repeated)
    found = share_slope(curves, limit_between(curves, share))
    between = np.abs(curves.amounts - found[:, None]).min(axis=1) > 1e-9
    assert between.sum() <= 1


@settings(deadline=None, max_examples=100)
@given(SEEDS)
def test_at_vertices_of_convex_curves_it_is_the_best_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    amounts = np.tile(np.arange(5) / 4, (3, 1))
    weights, scale = rng.integers(1, 9, (3, 1)), rng.lognormal(0, 1, (3, 1))
    curves = Curves(amounts, weights * (1 - amounts), scale * amounts ** rng.uniform(1.2, 3, (3, 1)))
    steps = find_steps(curves, np.zeros(3, dtype=np.intp))
    taken = int(rng.integers(0, len(steps.saved) + 1))
    limit = float(curves.sizes[:, 0].sum() - steps.saved[:taken].sum())
    every = itertools.product(range(5), repeat=3)
    fitting = [places for places in every if curves.sizes[range(3), places].sum() <= limit + 1e-9]
    best = min(float(curves.costs[range(3), places].sum()) for places in fitting)
    found = share_slope(curves, limit)
    assert cost_of(curves, found) == pytest.approx(best, rel=1e-6)
    assert np.abs(amounts[0][:, None] - found).min(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.floats(0.05, 0.95))
def test_a_fine_grid_of_two_units_knows_nothing_better(seed: int, share: float) -> None:
    curves = make_curves(seed, "convex")
    curves = Curves(curves.amounts[:2], curves.sizes[:2], curves.costs[:2])
    limit = limit_between(curves, share)
    found = cost_of(curves, share_slope(curves, limit))
    grids = [np.linspace(x[0], x[-1], 30) for x in curves.amounts]
    for amounts in itertools.product(*grids):
        if interpolate(curves, np.array(amounts), curves.sizes) <= limit:
            assert found <= cost_of(curves, np.array(amounts)) + 1e-9 * curves.costs.sum()


@settings(deadline=None, max_examples=50)
@given(SEEDS, SHARES)
def test_steps_of_one_unit_come_in_its_own_order(seed: int, share: float) -> None:
    """On straight lines rounding must not put a second step before a first one."""
    curves = make_curves(seed, "linear")
    steps = find_steps(curves, curves.sizes.argmax(axis=1))
    assert (np.diff(steps.slopes) >= 0).all() and (steps.saved > 0).all()
    for unit in range(len(curves.amounts)):
        own = steps.units == unit
        assert steps.left[own].tolist()[1:] == steps.right[own].tolist()[:-1]
    found = share_slope(curves, limit_between(curves, share))
    assert interpolate(curves, found, curves.sizes) == pytest.approx(limit_between(curves, share))


def test_equal_slopes_by_hand() -> None:
    """Costs a², weights 1 and 3: both end at the same amount where costs are per weight, for slopes are then equal."""
    amounts = np.tile(np.arange(11) / 10, (2, 1))
    weights = np.array([[1.0], [3.0]])
    alike = Curves(amounts, weights * (1 - amounts), weights * amounts**2)
    assert share_slope(alike, 0.6 * 4) == pytest.approx([0.4, 0.4])
    harder = Curves(amounts, weights * (1 - amounts), weights * amounts**2 * [[1.0], [3.0]])
    first, second = share_slope(harder, 0.7 * 4)
    assert first + 3 * second == pytest.approx(0.3 * 4) and (first, second) == pytest.approx((0.6, 0.2))


def test_no_more_is_taken_than_asked_where_that_seems_to_lower_the_cost() -> None:
    amounts, weights = np.array([[0.0, 0.5, 1.0]] * 2), np.array([[1.0], [1.0]])
    curves = Curves(amounts, weights * (1 - amounts), np.array([[0.0, -1.0, 3.0], [0.0, 1.0, 3.0]]))
    assert share_slope(curves, 2.0).tolist() == share_slope(curves, 99.0).tolist() == [0.0, 0.0]
    assert share_slope(curves, 1.75) == pytest.approx([0.25, 0.0])
    assert share_slope(curves, 1.25) == pytest.approx([0.5, 0.25])
    assert find_cheapest(curves).tolist() == [1, 0]


def test_a_point_above_the_hull_is_passed_by() -> None:
    curves = Curves(np.array([[0.0, 0.5, 1.0]]), np.array([[1.0, 0.5, 0.0]]), np.array([[0.0, 9.0, 1.0]]))
    assert share_slope(curves, 0.25) == pytest.approx([0.75])
    steps = find_steps(curves, find_cheapest(curves))
    assert steps.left.tolist() == [0] and steps.right.tolist() == [2] and steps.slopes.tolist() == [1.0]


def test_of_points_that_cost_the_same_the_smallest_counts() -> None:
    amounts = np.array([[0.0, 0.5, 1.0]] * 2)
    assert find_cheapest(Curves(amounts, 1 - amounts, np.zeros((2, 3)))).tolist() == [2, 2]


def test_a_limit_out_of_reach_gives_the_last_points() -> None:
    curves = make_curves(3, "convex")
    assert share_slope(curves, -1.0).tolist() == curves.amounts[:, -1].tolist()
    alone = Curves(np.array([[0.3]]), np.array([[7.0]]), np.array([[5.0]]))
    assert share_slope(alone, 0.0).tolist() == share_slope(alone, 9.0).tolist() == [0.3]
