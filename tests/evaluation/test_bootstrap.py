"""Scores and their intervals against theory and against a plain loop."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from compressor.contracts import Metric
from compressor.errors import PluginError
from compressor.evaluation.bootstrap import (
    aggregate,
    aggregate_each,
    bound,
    compare_paired,
    count_draws,
    draw_resamples,
    leave_out_each,
    summarize,
)
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.perplexity import Perplexity
from tests.support.bootstrap_t import bound_by_percentiles, studentize
from tests.support.broken_plugins import broken
from tests.support.slow import rarely

Array = NDArray[np.float64]
Bound = Callable[[Array], tuple[float, float]]


def test_aggregates_equal_numpy() -> None:
    values = np.random.default_rng(0).integers(0, 65, size=(101, 1)).astype(float)
    score = summarize(Fdtm(), values)
    assert score.mean == values.mean()
    assert (score.p25, score.median, score.p75) == tuple(np.percentile(values, (25, 50, 75)))
    assert (score.min, score.max, score.n) == (values.min(), values.max(), 101)


def test_interval_of_a_mean_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10, 3, size=(400, 1))
    score = summarize(Fdtm(), values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert score.low == pytest.approx(values.mean() - half, abs=0.06)
    assert score.high == pytest.approx(values.mean() + half, abs=0.06)


def draw_fdt(expected: float, count: int = 20_000) -> Array:
    """A population of FDT `[sequence, 1]`: geometric, cut at 64 tokens."""
    draws = np.random.default_rng(7).geometric(1 / (expected + 1), size=(count, 1)) - 1
    return np.minimum(draws, 64).astype(float)


def draw_windows(spread: float, count: int = 20_000) -> Array:
    """A population of windows of text: `[sequence, 2]`, nats and counted tokens."""
    generator = np.random.default_rng(8)
    tokens = generator.integers(20, 128, count)
    return np.stack([tokens * (2.3 + spread * (generator.gamma(4, 0.5, count) - 2)), tokens], axis=1)


def count_hits(bound: Bound, population: Array, truth: float, size: int, samples: int) -> float:
    """The share of samples from the population whose interval holds the truth."""
    generator = np.random.default_rng(size)
    ends = [bound(generator.choice(population, size)) for _ in range(samples)]
    return float(np.mean([low <= truth <= high for low, high in ends]))


def summarized(metric: Metric) -> Bound:
    def bound(values: Array) -> tuple[float, float]:
        score = summarize(metric, values)
        return score.low, score.high

    return bound


def allow(share: float, samples: int) -> float:
    """The share minus three standard errors of the simulation."""
    return share - 3 * float(np.sqrt(share * (1 - share) / samples))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    population, metric = draw_fdt(5.0), Fdtm()
    truth = float(metric.aggregate(population))
    covered = count_hits(summarized(metric), population, truth, 32, 400)
    assert allow(0.94, 400) <= covered <= 0.985
    by_percentiles = count_hits(lambda values: bound_by_percentiles(metric, values), population, truth, 32, 400)
    assert covered > by_percentiles + 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("size", "least"), [(16, 0.92), (32, 0.94), (64, 0.94)])
@pytest.mark.parametrize(
    ("metric", "population"), [(Fdtm(), draw_fdt(5.0)), (Fdtm(), draw_fdt(20.0)), (Perplexity(), draw_windows(0.2))]
)
def test_intervals_cover_the_truth(metric: Metric, population: Array, size: int, least: float) -> None:
    truth = float(metric.aggregate(population))
    assert count_hits(summarized(metric), population, truth, size, 2000) >= allow(least, 2000)


def pair(bound_pair: Callable[[Array, Array], tuple[float, float, float]]) -> Bound:
    """Intervals of `[sequence, 4]`: the values of one model, then those of the other."""
    return lambda values: bound_pair(values[:, :2], values[:, 2:])[1:]


@pytest.mark.parametrize("size", [32, *rarely([16, 64])])
@pytest.mark.parametrize("metric", [Fdtm(), *rarely([Perplexity()])])
def test_intervals_of_paired_differences_cover_the_truth(metric: Metric, size: int) -> None:
    if isinstance(metric, Perplexity):
        first = draw_windows(0.2)
        second = first * [1.0, 1.0] + np.random.default_rng(9).gamma(2, 0.02, (len(first), 1)) * first[:, 1:] * [1, 0]
    else:
        first = draw_fdt(20.0).repeat(2, axis=1)
        second = np.minimum(first, draw_fdt(40.0)[::-1])
    population = np.concatenate([first, second], axis=1)
    truth = float(metric.aggregate(first) - metric.aggregate(second))
    bound_difference = pair(lambda one, other: compare_paired(metric, one, other))
    samples = 500 if size == 32 else 2000
    assert count_hits(bound_difference, population, truth, size, samples) >= allow(0.94 if size > 16 else 0.92, samples)


VALUES = np.random.default_rng(3).random((12, 2)) + 0.5


@pytest.mark.parametrize("metric", [Perplexity(), DivergentPerplexity(), Fdtm()])
def test_intervals_equal_a_plain_loop(metric: Metric) -> None:
    left_out = [float(metric.aggregate(np.delete(VALUES, row, axis=0))) for row in range(12)]
    score = summarize(metric, VALUES, 3)
    assert score.mean == pytest.approx(float(metric.aggregate(VALUES)), rel=1e-15)
    assert (score.low, score.high) == pytest.approx(studentize(score.mean, left_out, 3), rel=1e-12)


def test_the_interval_of_a_difference_equals_a_plain_loop() -> None:
    metric, second = Perplexity(), VALUES[::-1] * [1.1, 1.0]
    differences = [
        float(metric.aggregate(np.delete(VALUES, row, axis=0)) - metric.aggregate(np.delete(second, row, axis=0)))
        for row in range(12)
    ]
    value, low, high = compare_paired(metric, VALUES, second, 3)
    assert value == pytest.approx(metric.aggregate(VALUES) - metric.aggregate(second), rel=1e-15)
    assert (low, high) == pytest.approx(studentize(value, differences, 3), abs=1e-12)


def test_resamples_without_spread_are_the_farthest_on_their_side() -> None:
    """Of 40 sequences 38 agree to the end. Every eighth resample has only such, and would have no standard error."""
    values = np.array([[40.0], [50.0], *[[64.0]] * 38])
    score = summarize(Fdtm(), values, 3)
    left_out = [float(np.delete(values, row).mean()) for row in range(40)]
    low, high = studentize(score.mean, left_out, 3)
    assert high > 64.0 == score.high
    assert score.low == pytest.approx(low, rel=1e-12)
    assert score.low < bound_by_percentiles(Fdtm(), values)[0]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_an_interval_goes_no_farther_than_single_sequences(size: int) -> None:
    for seed in range(50):
        values = draw_fdt(20.0)[seed * size : (seed + 1) * size]
        score = summarize(Fdtm(), values)
        assert score.min <= score.low <= score.mean <= score.high <= score.max
        assert score.low < score.high or score.min == score.max
        if size == 2:
            assert (score.low, score.high) == (score.min, score.max)


@pytest.mark.parametrize("factor", [7.0, 1e-290, 1e290])
def test_the_interval_moves_and_grows_with_the_values(factor: float) -> None:
    values = np.random.default_rng(4).exponential(5.0, size=(30, 1))
    score, moved, grown = (summarize(Fdtm(), part) for part in (values, values + 100, values * factor))
    assert (moved.low - 100, moved.high - 100) == pytest.approx((score.low, score.high), rel=1e-11)
    assert (grown.low / factor, grown.high / factor) == pytest.approx((score.low, score.high), rel=1e-12)
    first = compare_paired(Fdtm(), values, values[::-1])
    assert compare_paired(Fdtm(), values + 50, values[::-1] + 50) == pytest.approx(first, rel=1e-9)


def test_sequences_in_another_order_change_only_what_is_drawn() -> None:
    values = np.random.default_rng(5).exponential(5.0, size=(40, 1))
    order = np.random.default_rng(6).permutation(40)
    ends = [summarize(Fdtm(), part, seed) for seed in range(20) for part in (values, values[order])]
    width = ends[0].high - ends[0].low
    for one, other in zip(ends[::2], ends[1::2], strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.2 * width)
    low, high = (np.array([getattr(score, name) for score in ends]) for name in ("low", "high"))
    assert [low[::2].mean(), high[::2].mean()] == pytest.approx([low[1::2].mean(), high[1::2].mean()], abs=0.04 * width)
    drawn = draw_resamples(40, 0)
    found = bound(values.mean(), values[:, 0] - values.mean(), values[:, 0], 0)
    count_draws.cache_clear()
    try:
        with mock.patch("compressor.evaluation.bootstrap.draw_resamples", lambda *_: np.argsort(order)[drawn]):
            turned = bound(values.mean(), values[order, 0] - values.mean(), values[order, 0], 0)
    finally:
        count_draws.cache_clear()
    assert turned == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("value", [0.0, 0.1, 64.0, 1e-300, 1e300])
@pytest.mark.parametrize("metric", [Fdtm(), Perplexity()])
def test_equal_sequences_have_an_interval_without_width(metric: Metric, value: float, size: int) -> None:
    values = np.tile([value, 3.0 * max(value, 1.0)], (size, 1))
    score = summarize(metric, values)
    assert score.high - score.low <= 4e-16 * abs(score.mean)
    assert score.low <= score.mean <= score.high


def test_a_difference_that_is_equal_everywhere_has_no_width() -> None:
    values = np.random.default_rng(4).exponential(5.0, size=(30, 1))
    value, low, high = compare_paired(Fdtm(), values, values)
    assert value == low == high == 0.0
    value, low, high = compare_paired(Fdtm(), values + 0.1, values)
    assert (low, high) == pytest.approx((0.1, 0.1), abs=1e-14)


def test_many_sequences_are_left_out_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random((50, 2)) + 0.5
    at_once = leave_out_each(Perplexity(), values)
    assert at_once == pytest.approx(
        [Perplexity().aggregate(np.delete(values, row, axis=0)) for row in range(50)], rel=1e-15
    )
    sizes = []
    counting = broken(
        Perplexity, aggregate=lambda self, part: sizes.append(part.size) or Perplexity.aggregate(self, part)
    )
    monkeypatch.setattr("compressor.evaluation.bootstrap.CHUNK", 500)
    assert leave_out_each(counting, values) == pytest.approx(at_once, rel=1e-15)
    assert len(sizes) > 5 and max(sizes) < 1000


def test_the_value_of_a_metric_need_not_be_a_mean() -> None:
    nats = np.array([[0.0], [2.0]])
    assert summarize(DivergentPerplexity(), nats).mean == pytest.approx(np.exp(1.0))
    assert aggregate_each(DivergentPerplexity(), nats) == pytest.approx([1.0, np.exp(2.0)])


def test_one_sequence_has_a_point_as_interval() -> None:
    score = summarize(Fdtm(), np.array([[7.0]]))
    assert score.low == score.high == score.p75_low == score.mean == 7.0


def test_paired_interval_is_narrower_than_the_models_differ() -> None:
    first = np.random.default_rng(4).exponential(10, size=(300, 1))
    second = first + np.random.default_rng(5).normal(0.5, 0.1, size=(300, 1))
    difference, low, high = compare_paired(Fdtm(), first, second)
    assert low < difference < high < 0
    assert high - low < 0.05


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(6).random((50, 1))
    assert summarize(Fdtm(), values, 3) == summarize(Fdtm(), values, 3)
    assert summarize(Fdtm(), values, 3).low != summarize(Fdtm(), values, 4).low


@pytest.mark.parametrize("values", [[1e308, -1e308, 1e308, 0.0], [1.7e308] * 5, [1e308], [1e308, -1e308]])
def test_large_values_have_a_finite_interval(values: list[float]) -> None:
    """Warnings are errors: numpy warns of an overflow."""
    largest = broken(Kl, aggregate=lambda self, values: values[..., 0].max(axis=-1))
    score = summarize(largest, np.array(values)[:, None])
    small = summarize(largest, np.array(values)[:, None] / 2.0**100)
    assert {name: value / 2.0**100 for name, value in score.to_json().items() if name != "n"} == {
        name: value for name, value in small.to_json().items() if name != "n"
    }


def test_an_aggregate_that_overflows_is_refused_without_a_warning() -> None:
    with pytest.raises(PluginError, match=r"`aggregate` of metric `perplexity` of .* gave NaN or infinity for finite"):
        aggregate(Perplexity(), np.array([[1000.0, 1.0]]))


def test_non_finite_values_are_refused() -> None:
    with pytest.raises(PluginError, match=r"`fdtm` of .* gave values of shape .* with 1 non-finite"):
        summarize(Fdtm(), np.array([[1.0], [np.nan]]))


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda values: values[..., 0].mean(-1) * np.nan, "gave NaN or infinity"),
        (lambda values: values[..., 0], r"gave shape \(3, 1\)"),
        (lambda values: "much", "gave str, which holds no numbers"),
        (lambda values: None, r"gave shape \(\)"),
        (lambda values: 1 / 0, "failed in `aggregate`: ZeroDivisionError"),
    ],
)
def test_an_aggregate_that_is_no_number_is_refused(give: Callable[[Any], Any], message: str) -> None:
    metric = broken(Fdtm, aggregate=lambda self, values: give(values))
    with pytest.raises(PluginError, match=f"metric `fdtm` of .*{message}"):
        summarize(metric, np.ones((3, 2)))


def test_an_aggregate_cannot_change_the_values() -> None:
    def rank(self: Metric, values: Any) -> Any:  # noqa: ANN401
        values.sort(axis=-2)
        return values[..., 0, 0]

    values = np.random.default_rng(0).normal(size=(5, 1))
    before = values.copy()
    with pytest.raises(PluginError, match=r"failed in `aggregate`: ValueError: .*read-only"):
        aggregate(broken(Kl, aggregate=rank), values)
    assert (values == before).all() and values.flags.writeable
