"""The steady estimate: rows apart, made true on the whole by what they do together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressor.contracts import Estimate
from compressor.sensitivity.shrinkage import compare_squares, shrink_ratios, steady_changes

Array = NDArray[np.float64]


def make_estimate(rows: Array, line: Array | None = None) -> Estimate:
    """From projections `[sequence, row, option]`."""
    together, apart = rows.sum(1) ** 2, (rows**2).sum(1)
    first = np.zeros_like(together) if line is None else line
    return Estimate(first + together, apart=first + apart, line=first)


def draw_rows(
    seed: int, sequences: int = 64, rows: int = 40, options: int = 3, common: float = 0.0, scale: float = 1.0
) -> Array:
    """Normal projections that grow with the option; `common` is what all rows of a sequence share."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(sequences, rows, options)) + common * rng.normal(size=(sequences, 1, 1))
    result: Array = scale * drawn * (1 + np.arange(options))
    return result


def truth(rows: int, option: int, common: float, scale: float) -> float:
    """E(Σ_r p_r)² of `draw_rows`."""
    return scale**2 * (1 + option) ** 2 * (rows + rows**2 * common**2)


def test_it_is_steadier_than_the_square_of_the_sum() -> None:
    """Independent rows: over many draws both are true in the mean, and the steady one has far less spread."""
    steady, raw = [], []
    for seed in range(100):
        estimates = {f"c{index}": make_estimate(draw_rows(1000 * seed + index)) for index in range(20)}
        changes = steady_changes(estimates)
        steady += [changes[name].mean(axis=0)[2] for name in estimates]
        raw += [estimate.changes.mean(axis=0)[2] for estimate in estimates.values()]
    expected = truth(40, 2, 0.0, 1.0)
    assert np.mean(steady) == pytest.approx(expected, rel=0.03)
    assert np.std(steady) < 0.5 * np.std(raw)
    assert np.std(raw) / expected == pytest.approx(np.sqrt(2 / 64), rel=0.15)


def test_what_rows_do_together_is_kept() -> None:
    """Where rows act together, each component in its own measure, the sum of their squares alone would be far off."""
    common = {f"c{index}": 0.05 * index for index in range(12)}
    estimates = {
        name: make_estimate(draw_rows(index, sequences=512, common=value))
        for index, (name, value) in enumerate(common.items())
    }
    changes = steady_changes(estimates)
    for name, value in common.items():
        expected = truth(40, 1, value, 1.0)
        assert changes[name].mean(axis=0)[1] == pytest.approx(expected, rel=0.25), name
    last = estimates["c11"]
    assert last.apart is not None and last.apart.mean(axis=0)[1] < 0.1 * truth(40, 1, common["c11"], 1.0)


def test_the_first_order_part_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    rows, line = draw_rows(1), rng.normal(size=(64, 3))
    with_line, without = make_estimate(rows, line), make_estimate(rows)
    found, plain = steady_changes({"c": with_line})["c"], steady_changes({"c": without})["c"]
    np.testing.assert_allclose(found - line, plain, rtol=1e-9)


def test_one_component_alone_is_true_on_the_whole() -> None:
    """Nothing to shrink to: the steady mean of one option is the mean of the squares of sums."""
    estimate = make_estimate(draw_rows(3, options=1))
    assert steady_changes({"c": estimate})["c"].mean() == pytest.approx(estimate.changes.mean())


def test_measured_changes_stay_what_they_are() -> None:
    measured = Estimate(np.array([[0.5, -0.25]]))
    found = steady_changes({"measured": measured, "estimated": make_estimate(draw_rows(4))})
    assert found["measured"] is measured.changes


@pytest.mark.parametrize("sequences", [1, 2])
def test_few_sequences_share_one_ratio_or_nearly(sequences: int) -> None:
    estimates = {f"c{index}": make_estimate(draw_rows(index, sequences=sequences)) for index in range(6)}
    changes = steady_changes(estimates)
    assert all(np.isfinite(values).all() for values in changes.values())
    if sequences == 1:
        ratios = [changes[name] / estimate.apart for name, estimate in estimates.items()]
        np.testing.assert_allclose(ratios, np.full_like(ratios, ratios[0][0, 0]))


def test_options_without_change_cost_nothing() -> None:
    rows = draw_rows(5)
    rows[:, :, 1] = 0.0
    assert not steady_changes({"c": make_estimate(rows), "d": make_estimate(draw_rows(6))})["c"][:, 1].any()
    nothing = make_estimate(np.zeros((8, 4, 2)))
    assert compare_squares(nothing.changes, nothing.changes) is None
    assert not steady_changes({"c": nothing})["c"].any()


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    found = []
    for seed in range(300):
        estimate = make_estimate(draw_rows(seed, common=0.1))
        assert estimate.apart is not None
        pair = compare_squares(estimate.changes, estimate.apart)
        assert pair is not None
        found.append(pair)
    logs, errors = np.array(found).T
    assert errors.mean() == pytest.approx(logs.std(), rel=0.2)


@settings(deadline=None)
@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=8),
    st.floats(0.0, 5.0),
)
def test_ratios_move_towards_their_mean(logs: list[float], error: float) -> None:
    values = {str(index): value for index, value in enumerate(logs)}
    found = np.log(list(shrink_ratios(values, dict.fromkeys(values, error)).values()))
    mean = np.mean(logs)
    assert found.mean() == pytest.approx(mean, abs=1e-9)
    assert (np.abs(found - mean) <= np.abs(np.array(logs) - mean) + 1e-9).all()
    assert (np.sign(np.round(found - mean, 9)) * np.sign(np.array(logs) - mean) >= 0).all()


def test_certain_ratios_are_kept_and_hopeless_ones_are_not() -> None:
    logs = {"a": 0.0, "b": 1.0, "c": 2.0}
    assert shrink_ratios(logs, dict.fromkeys(logs, 0.0)) == pytest.approx({name: np.exp(v) for name, v in logs.items()})
    assert shrink_ratios(logs, dict.fromkeys(logs, 100.0)) == pytest.approx(dict.fromkeys(logs, np.e))
    assert shrink_ratios(logs, dict.fromkeys(logs, np.inf)) == pytest.approx(dict.fromkeys(logs, np.e))
    assert shrink_ratios({}, {}) == {}
    mixed = shrink_ratios(logs, {"a": 0.01, "b": 0.01, "c": 1.0})
    assert mixed["a"] == pytest.approx(1.0, rel=0.01) or mixed["a"] < np.e
    assert abs(np.log(mixed["c"]) - 1) < abs(np.log(mixed["a"]) - 1)
