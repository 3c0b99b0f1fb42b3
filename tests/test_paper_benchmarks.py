"""Benchmarks that repeat measurements of the paper: on a small random model, and what they count."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from compressor.contracts import Treatment
from compressor.data.texts import Windows
from compressor_plugins.pruning.random import Random
from tests.benchmarks import discrimination, protocol, recoveries
from tests.benchmarks.discrimination import (
    SEED,
    Judged,
    SeededWeights,
    bound_share,
    choose_windows,
    count_weights,
    describe,
    draw_trials,
)
from tests.benchmarks.protocol import (
    STATISTICS,
    Pool,
    count_needed,
    draw_samples,
    find_error,
    find_order,
    take_mean,
    take_p75,
)
from tests.benchmarks.runs import open_run
from tests.support.families import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "small"
    return str(save_checkpoint("llama", folder, max_position_embeddings=128))


def test_every_metric_judges_every_trial(checkpoint: str, tmp_path: Path) -> None:
    arguments = ["--models", checkpoint, "--shares", "0.001", "0.5", "--prefixes", "2", "4", "--trials", "6", "3"]
    arguments += ["--pool", "5", "--keep", str(tmp_path)]
    rows = list(discrimination.measure(arguments))
    assert [row["metric"] for row in rows[:8]] == ["fdtm", "FDT75", *discrimination.METRICS[1:]]
    assert len(rows) == 2 * 2 * 8
    for row in rows:
        assert row["right"] + row["tied"] + row["wrong"] == pytest.approx(1)
        assert row["accuracy"][0] == pytest.approx(row["right"] + row["tied"] / 2)
    assert {row["weights"] for row in rows} == {"1–2", "256–768"}
    large = {row["metric"]: row for row in rows if row["pruned"] == "50.0%" and row["prefixes"] == 4}
    assert large["kl"]["accuracy"][0] == large["margin_noise"]["accuracy"][0] == 1.0
    assert list(discrimination.measure(arguments)) == rows, "what was kept is not measured again"


def test_the_discrimination_test_names_what_does_not_fit() -> None:
    for arguments in (["--trials", "5"], ["--pool", "32"]):
        with pytest.raises(SystemExit):
            list(discrimination.measure(arguments))


def test_random_weights_differ_by_seed(checkpoint: str) -> None:
    with open_run(checkpoint, [Random()], ["fdtm"], prefixes=1, proof_prefixes=1) as run:
        source = SeededWeights(run.setup.model, run.session.treatments)
        name = next(iter(run.setup.model.components))
        first, again, other = (
            source.make(name, Treatment("random", 0.1, {SEED: seed})).weight == 0 for seed in (1, 1, 2)
        )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.sum() == other.sum() == round(0.1 * first.numel())


def test_trials_are_spread_over_the_sets_of_prefixes() -> None:
    trials = draw_trials(["a", "b", "c"], 4, 10, 0)
    assert [trial.part for trial in trials] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len({trial.seed for trial in trials}) == 10 and {trial.component for trial in trials} == {"a", "b", "c"}
    assert trials == draw_trials(["a", "b", "c"], 4, 10, 0) != draw_trials(["a", "b", "c"], 4, 10, 1)
    assert [count_weights(parameters, 0.001) for parameters in (10, 2048, 18432)] == [1, 2, 18]


def test_a_short_text_is_read_again() -> None:
    windows = Windows("text", torch.arange(3)[:, None], torch.ones((3, 0), dtype=torch.bool))
    assert choose_windows(windows, 2, 6).tokens[:, 0].tolist() == [2, 0, 1, 2]


def test_the_judge_is_right_where_random_weights_are_worse() -> None:
    lowest = {"fdtm": np.array([9.0, 9.0, 9.0, 9.0]), "kl": np.array([1.0, 1.0, 1.0, 1.0])}
    random = {"fdtm": np.array([8.0, 9.0, 9.0, 10.0]), "kl": np.array([2.0, 3.0, 1.5, 0.5])}
    fdt, kl = describe(Judged(lowest, random, (1, 2)))
    assert (fdt["right"], fdt["tied"], fdt["wrong"]) == (0.25, 0.5, 0.25)
    assert (kl["right"], kl["tied"], kl["wrong"]) == (0.75, 0.0, 0.25)
    assert fdt["accuracy"][0] == 0.5 and kl["accuracy"][0] == 0.75
    assert kl["worse by"] == 0.75 and fdt["worse by"] == 0.0


@pytest.mark.parametrize(("right", "count"), [(0, 10), (8, 10), (50, 50), (517, 1000)])
def test_shares_have_the_interval_of_wilson(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert bound_share(right / count, count) == pytest.approx([right / count, expected.low, expected.high])


def test_the_protocol_has_rows_for_plans_and_pairs(checkpoint: str, tmp_path: Path) -> None:
    arguments = ["--models", checkpoint, "--prefix-tokens", "4", "--tokens", "3", "8", "--pool", "12"]
    arguments += ["--draws", "20", "--keep", str(tmp_path)]
    rows = list(protocol.measure(arguments))
    plans = len(protocol.SPARSITIES) + 1
    assert len(rows) == 2 * (plans * len(STATISTICS) + len(protocol.PAIRS))
    values = {(row["tokens"], row["plan"], row["metric"]): row["value"] for row in rows if "metric" in row}
    for plan in ("20% pruned", "4 bits"):
        assert values[3, plan, "FDT"] <= values[8, plan, "FDT"]
        assert values[8, plan, "FDT"] + values[8, plan, "SDT"] <= 8
    assert {row["distinct"] for row in rows} <= set(range(1, 13))
    assert list(protocol.measure(arguments)) == rows


def test_a_shorter_continuation_is_the_beginning_of_a_longer_one() -> None:
    pool = Pool(np.array([[False, False, True, False], [True, False, False, True]]), np.ones((2, 4), np.float32), 2)
    assert {name: values.tolist() for name, values in pool.read(2).items()} == {
        "FDT": [2, 0],
        "SDT": [0, 1],
        "KL": [1, 1],
    }
    assert pool.read(4)["FDT"].tolist() == [2, 0] and pool.read(4)["SDT"].tolist() == [1, 2]


def test_the_error_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(10, 2, 500)
    samples = draw_samples(500, 16, 4000, 0)
    assert find_error(take_mean, values, samples) == pytest.approx(values.std() / 4 / values.mean(), rel=0.05)
    assert find_error(take_p75, np.full(500, 64.0), samples) == 0.0


def test_orders_are_compared_with_that_of_the_pool() -> None:
    first, second = np.arange(100.0), np.arange(100.0) + 1
    samples = draw_samples(100, 8, 50, 0)
    assert find_order(take_mean, first, second, samples) == find_order(take_mean, second, first, samples) == 1.0
    assert find_order(take_mean, first, first, samples) is None
    rare = np.zeros(100)
    rare[0] = 1.0
    unseen = float(np.mean((samples != 0).all(axis=1)))
    assert find_order(take_mean, rare, np.zeros(100), samples) == pytest.approx(1 - unseen / 2)


def test_enough_prefixes_are_those_from_which_on_the_order_holds() -> None:
    assert count_needed({1: 0.96, 2: 0.5, 4: 0.95, 8: 1.0}) == 4
    assert count_needed({1: 1.0, 2: 1.0}) == 1
    assert count_needed({1: 0.6, 2: 0.7}) == "> 2"
    assert count_needed({1: None, 2: None}) == "equal"


@pytest.mark.slow
def test_recoveries_are_compared_at_equal_seconds(tmp_path: Path) -> None:
    checkpoint = save_checkpoint("llama", tmp_path / "small", max_position_embeddings=256, with_tokenizer=True)
    few = ["--seconds", "1", "--prefixes", "2", "--windows", "8"]
    rows = list(recoveries.measure(["--model", str(checkpoint), "--targets", "0.5", *few]))
    assert [row["recovery"] for row in rows] == ["none", "least_squares", "finetune", "reconstruct"]
    assert [row["seconds"] > 0 for row in rows] == [False, True, True, True]
    assert [row["steps"] > 0 for row in rows] == [False, False, True, True]
    assert len({row["kl"][0] for row in rows}) == len(rows)
    few[:2] = ["--steps", "finetune=2"]
    given = list(recoveries.measure(["--model", str(checkpoint), "--targets", "0.5", *few]))
    assert [(row["recovery"], row["steps"]) for row in given[2:]] == [("finetune", 2)]
    assert [row["kl"] for row in given[:2]] == [row["kl"] for row in rows[:2]]
