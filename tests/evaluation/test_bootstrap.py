"""Scores and their intervals against theory and against a plain loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compressor.contracts import Metric
from compressor.errors import PluginError
from compressor.evaluation.bootstrap import aggregate, aggregate_each, compare_paired, summarize
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.perplexity import Perplexity
from tests.support.broken_plugins import broken


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


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        score = summarize(Fdtm(), generator.exponential(5.0, size=(200, 1)))
        hits += score.low <= 5.0 <= score.high
    assert 180 <= hits <= 199  # 95 % of 200, three binomial standard deviations


def test_resampling_equals_a_plain_loop() -> None:
    values = np.random.default_rng(3).random((12, 2)) + 0.5
    metric = Perplexity()
    from compressor.evaluation.bootstrap import draw_resamples

    loop = [metric.aggregate(values[rows]) for rows in draw_resamples(12, 0)]
    score = summarize(metric, values)
    assert (score.low, score.high) == pytest.approx(tuple(np.percentile(loop, (2.5, 97.5))))
    assert score.mean == pytest.approx(np.exp(values[:, 0].sum() / values[:, 1].sum()))


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
