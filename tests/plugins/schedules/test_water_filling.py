"""The mathematics of Algorithm 1 against an independent search over levels, and as properties."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressor_plugins.schedules.water_filling import (
    cut_curves,
    fill,
    make_non_increasing,
    read_off,
    replace_non_finite,
)

Array = NDArray[np.float64]
STEPS = 200_000


def search_levels(amounts: Array, goodness: Array, weights: Array, target: float) -> Array:
    """Algorithm 1 as the paper words it: lower the level in small steps, read every curve off, stop at the budget."""
    levels = np.linspace(goodness.max(), goodness.min(), STEPS)
    fine = np.linspace(0.0, 1.0, 20_001)
    dense = np.stack([np.interp(fine, x, y) for x, y in zip(amounts, goodness, strict=True)])
    reached = np.stack([np.searchsorted(-row, -levels, side="right") for row in dense])
    found = fine[np.maximum(reached - 1, 0)]
    enough = weights @ found / weights.sum() >= target
    result: Array = found[:, np.argmax(enough)]
    return result


@st.composite
def curve_sets(draw: st.DrawFn, strict: bool = False) -> tuple[Array, Array, Array]:
    """Amounts, goodness and weights of up to six components; `strict` has neither plateaus nor steps."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    components, inner = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    amounts = np.sort(np.hstack([np.zeros((components, 1)), rng.random((components, inner)), np.ones((components, 1))]))
    drops = rng.random((components, inner + 1)) + 0.05
    if not strict:
        drops *= rng.random(drops.shape) < draw(st.sampled_from([0.3, 0.7, 1.0]))
        if draw(st.booleans()):
            amounts, drops = np.round(amounts, 1), np.round(drops)
    goodness = 100.0 - np.hstack([np.zeros((components, 1)), np.cumsum(drops, axis=1) * 10.0])
    return amounts, goodness, rng.integers(1, 1000, components).astype(float)


@settings(deadline=None, max_examples=40)
@given(curve_sets(strict=True), st.floats(0.05, 0.95))
def test_fill_is_where_lowering_the_level_in_small_steps_stops(
    curves: tuple[Array, Array, Array], target: float
) -> None:
    amounts, goodness, weights = curves
    steepness = np.max(np.diff(amounts) / -np.diff(goodness))
    tolerance = 1e-3 + 2.0 * steepness * np.ptp(goodness) / STEPS
    assert np.allclose(fill(*curves, target), search_levels(amounts, goodness, weights, target), atol=tolerance)


@settings(deadline=None)
@given(curve_sets(), st.floats(0.0, 1.0))
def test_fill_hits_the_target_within_the_curves(curves: tuple[Array, Array, Array], target: float) -> None:
    amounts, _, weights = curves
    found = fill(*curves, target)
    low, high = (weights @ amounts[:, end] / weights.sum() for end in (0, -1))
    assert weights @ found / weights.sum() == pytest.approx(min(max(target, low), high), abs=1e-9)
    assert np.all(found >= amounts[:, 0] - 1e-12) and np.all(found <= amounts[:, -1] + 1e-12)


@settings(deadline=None)
@given(curve_sets(), st.floats(0.05, 0.95))
def test_no_allocation_has_a_better_worst_component(curves: tuple[Array, Array, Array], target: float) -> None:
    amounts, goodness, weights = curves
    found = fill(*curves, target)
    # on a step, any goodness between its ends is taken: the upper end is what the level has to beat
    worst = min(
        max(read_goodness(x, y, a - 1e-9), read_goodness(x, y, a))
        for x, y, a in zip(amounts, goodness, found, strict=True)
    )
    better = read_off(amounts, goodness, worst + 1e-4, past_plateau=True)
    assert weights @ better / weights.sum() <= target + 1e-6


def read_goodness(amounts: Array, goodness: Array, amount: float) -> float:
    return float(np.interp(amount, amounts, goodness))


@settings(deadline=None)
@given(curve_sets(), st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_fill_does_not_care_for_the_order_of_components(
    curves: tuple[Array, Array, Array], target: float, random: Random
) -> None:
    order = list(range(len(curves[0])))
    random.shuffle(order)
    permuted = fill(*(array[order] for array in curves), target)
    assert np.allclose(permuted, fill(*curves, target)[order], atol=1e-9)


@settings(deadline=None)
@given(curve_sets(), st.floats(0.05, 0.95), st.floats(0.0, 0.9))
def test_a_component_that_is_worse_everywhere_gets_no_more(
    curves: tuple[Array, Array, Array], target: float, share: float
) -> None:
    amounts, goodness, weights = curves
    top = goodness.max()
    robust = top - (top - goodness[:1]) * share
    both = (np.vstack([amounts[:1], amounts]), np.vstack([robust, goodness]), np.hstack([weights[:1], weights]))
    found = fill(*both, target)
    assert found[1] <= found[0] + 1e-9


def test_two_components_by_hand() -> None:
    # Level 9 - u, past B's point (0.3, 9): A is at (1 + u) / 20 and B at 0.3 + 0.7 u / 9; their sum 0.4 gives u = 9/23.
    amounts = np.array([[0.0, 0.1, 0.3, 1.0], [0.0, 0.1, 0.3, 1.0]])
    goodness = np.array([[10.0, 8.0, 4.0, 0.0], [10.0, 10.0, 9.0, 0.0]])
    assert fill(amounts, goodness, np.ones(2), 0.2) == pytest.approx([8 / 115, 38 / 115], abs=1e-12)


def test_a_plateau_is_shared_in_proportion() -> None:
    # Both stay at 10, A up to 0.2 and B up to 0.6; half of what both plateaus hold is wanted.
    amounts = np.array([[0.0, 0.2, 1.0], [0.0, 0.6, 1.0]])
    goodness = np.array([[10.0, 10.0, 0.0], [10.0, 10.0, 0.0]])
    assert fill(amounts, goodness, np.ones(2), 0.2) == pytest.approx([0.1, 0.3])


def test_a_component_below_the_water_keeps_its_beginning() -> None:
    amounts = np.array([[0.3, 1.0], [0.0, 1.0]])
    goodness = np.array([[2.0, 0.0], [10.0, 5.0]])
    assert fill(amounts, goodness, np.ones(2), 0.5) == pytest.approx([0.3, 0.7])


def test_weights_count() -> None:
    amounts, goodness = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, -2.0]])
    found = fill(amounts, goodness, np.array([3.0, 1.0]), 0.5)
    assert found == pytest.approx([0.6, 0.2])  # three times as steep, so a third as far: 3 a + a / 3 = 2


def test_read_off_sees_both_ends_of_a_plateau() -> None:
    amounts, goodness = np.array([[0.0, 0.2, 0.5, 0.5, 1.0]]), np.array([[9.0, 5.0, 5.0, 2.0, 2.0]])
    assert read_off(amounts, goodness, 5.0, past_plateau=False) == pytest.approx([0.2])
    assert read_off(amounts, goodness, 5.0, past_plateau=True) == pytest.approx([0.5])
    assert read_off(amounts, goodness, 3.0, past_plateau=False) == pytest.approx([0.5])
    assert read_off(amounts, goodness, 7.0, past_plateau=False) == pytest.approx([0.1])
    assert read_off(amounts, goodness, 99.0, past_plateau=True) == pytest.approx([0.0])
    assert read_off(amounts, goodness, 1.0, past_plateau=False) == pytest.approx([1.0])


def test_noise_upwards_is_flattened() -> None:
    assert make_non_increasing(np.array([[5.0, 7.0, 3.0, 4.0]])).tolist() == [[5.0, 5.0, 3.0, 3.0]]


def test_what_is_not_finite_counts_as_the_worst() -> None:
    values = np.array([[1.0, np.nan, -np.inf], [4.0, -2.0, np.inf]])
    assert replace_non_finite(values).tolist() == [[1.0, -2.0, -2.0], [4.0, -2.0, -2.0]]
    assert replace_non_finite(np.full((1, 2), np.nan)).tolist() == [[0.0, 0.0]]


def test_cut_curves_are_the_same_inside() -> None:
    amounts, goodness = np.array([[0.0, 0.4, 0.8, 1.0]]), np.array([[8.0, 4.0, 2.0, 0.0]])
    cut, values = cut_curves(amounts, goodness, np.array([0.2]), np.array([0.9]))
    assert cut.tolist() == [[0.2, 0.4, 0.8, 0.9]]
    assert values == pytest.approx(np.array([[6.0, 4.0, 2.0, 1.0]]))
