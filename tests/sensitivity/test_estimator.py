"""Estimates against explicit gradients in float64, however the sequences are walked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.contracts import EstimableMetric, EstimateRequest, Treatment
from compressor.data.reference import Reference
from compressor.models import Model, load_model
from compressor.models.gradients import LayerwiseGradients
from compressor.sensitivity.estimator import GradientEstimator
from compressor.settings import DType, ModelSettings
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.margin_noise import MarginNoise
from tests.support.estimates import Bench, BySequence, Oracle, make_bench, make_reference
from tests.support.slow import rarely_cases

PRUNED, EIGHT, FOUR = Treatment("magnitude", 0.3), Treatment("int8", 0.75), Treatment("int4", 0.875)


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max() + 1e-12, f"{what}: {found} {expected}"


OBJECTIVES = [MarginNoise(), Kl()]
by_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)


@pytest.mark.parametrize(
    ("family", "objective"),
    [
        *((family, OBJECTIVES[0]) for family in ("llama", "gpt2", "mixtral")),
        ("llama", OBJECTIVES[1]),
        ("opt", OBJECTIVES[1]),
        *rarely_cases((family, OBJECTIVES[1]) for family in ("gpt2", "mixtral")),
        *rarely_cases([("opt", OBJECTIVES[0])]),
    ],
)
def test_changes_at_the_base_are_those_of_explicit_gradients(
    family: str, objective: EstimableMetric, tmp_path: Path
) -> None:
    bench = make_bench(family, tmp_path)
    options = bench.everywhere(PRUNED, EIGHT, FOUR, None)
    found, oracle = bench.estimate(BySequence(objective), options), Oracle(bench)
    assert list(found) == list(options)
    for name, estimate in found.items():
        expected = oracle.changes(objective, name, options[name])
        for column in range(4):
            assert_near(estimate.changes[:, column], expected[:, column], 2e-3, f"{name}, option {column}")
        assert (estimate.changes >= 0).all() and (estimate.changes[:, 3] == 0).all() and estimate.rows is None


@pytest.mark.parametrize(
    ("family", "objective"),
    [
        ("llama", OBJECTIVES[0]),
        ("mixtral", OBJECTIVES[1]),
        *rarely_cases([("llama", OBJECTIVES[1]), ("mixtral", OBJECTIVES[0])]),
        *rarely_cases(("gpt2", objective) for objective in OBJECTIVES),
    ],
)
def test_changes_at_a_plan_are_those_of_explicit_gradients(
    family: str, objective: EstimableMetric, tmp_path: Path
) -> None:
    """Against the plan, but from the weights of the round's start: what is planned now may be undone."""
    bench = make_bench(family, tmp_path)
    names = list(bench.model.components)
    at = {name: Treatment("magnitude", 0.2) for name in names[::2]}
    options = bench.everywhere(PRUNED, FOUR, None, Treatment("magnitude", 0.2))
    found, oracle = bench.estimate(BySequence(objective), options, at=at), Oracle(bench, at)
    for name in names:
        expected = oracle.changes(objective, name, options[name])
        assert_near(found[name].changes, expected, 2e-3, name)
        same = 3 if name in at else 2
        assert (found[name].changes[:, same] == 0).all()
        assert found[name].changes[:, 5 - same].any()


def test_a_tied_head_is_estimated_too(tmp_path: Path) -> None:
    bench = make_bench("qwen2", tmp_path, include=["embed", "q_proj"])
    assert bench.model.head_is_component
    options = bench.everywhere(EIGHT, FOUR)
    found, oracle = bench.estimate(BySequence(MarginNoise()), options), Oracle(bench)
    for name in options:
        assert_near(found[name].changes, oracle.changes(MarginNoise(), name, options[name]), 2e-3, name)


@by_objective
def test_the_model_is_left_as_it_was(objective: EstimableMetric, tmp_path: Path) -> None:
    bench = make_bench("gpt2", tmp_path)
    before = {name: parameter.clone() for name, parameter in bench.model.network.named_parameters()}
    at = {next(iter(bench.model.components)): PRUNED}
    bench.estimate(objective, bench.everywhere(PRUNED, FOUR), at=at, by_row=True)
    for name, parameter in bench.model.network.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and not parameter.requires_grad


def test_rows_alone_are_the_rows_of_all(tmp_path: Path) -> None:
    """A row's change is that of the treatment which changes nothing but this row; at the base and at a plan."""
    bench = make_bench("gpt2", tmp_path)
    for name in ("transformer.h.0.attn.c_attn:k", "transformer.h.1.mlp.c_fc"):
        out = bench.model.components[name].shape[0]
        rows = [Treatment("magnitude", 0.5 / out, rows=tuple(0.5 * (r == row) for r in range(out))) for row in range(4)]
        whole = Treatment("magnitude", 0.5, rows=(0.5,) * out)
        for at in ({}, {"transformer.h.1.attn.c_proj": PRUNED}):
            together = bench.estimate(MarginNoise(), {name: [whole, None]}, at=at, by_row=True)[name]
            alone = bench.estimate(MarginNoise(), {name: rows}, at=at)[name]
            assert together.rows is not None and together.rows.shape == (out, 2)
            assert_near(together.rows[:4, 0], alone.changes.mean(axis=0), 1e-4, name)
            matrix = bench.estimate(MarginNoise(), {name: [whole, None]}, at=at)[name]
            assert_near(together.changes, matrix.changes, 1e-4, name)
            assert not together.rows[:, 1].any()


class OneByOne(LayerwiseGradients):
    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__(model, names)
        self.at_once = 1


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_it_makes_no_difference_how_many_are_walked_at_once(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(family, tmp_path)
    options, objective = bench.everywhere(PRUNED), BySequence(Kl())
    at = {next(iter(options)): FOUR}
    together = bench.estimate(objective, options, at=at)
    smaller = Bench(bench.model, make_reference(bench.model, batch=3)).estimate(objective, options, at=at)
    monkeypatch.setattr("compressor.sensitivity.estimator.LayerwiseGradients", OneByOne)
    alone = bench.estimate(objective, options, at=at)
    for name in options:
        assert_near(together[name].changes, alone[name].changes, 1e-4, name)
        assert_near(smaller[name].changes, alone[name].changes, 1e-4, name)


def test_it_makes_no_difference_what_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes that are made anew for every walk, of components with unlike numbers of options; gradients one by one."""
    bench = make_bench("llama", tmp_path)
    choices = [[PRUNED], [EIGHT, PRUNED, FOUR], [None, FOUR]]
    options = {name: choices[index % 3] for index, name in enumerate(bench.model.components)}
    roomy = bench.estimate(BySequence(Kl()), options)
    monkeypatch.setattr("compressor.sensitivity.estimator.KEPT_NUMBERS", 0)
    monkeypatch.setattr("compressor.models.gradients.GRADIENT_NUMBERS", 1)
    tight = bench.estimate(BySequence(Kl()), options)
    for name in options:
        assert_near(tight[name].changes, roomy[name].changes, 1e-4, name)


@pytest.mark.parametrize(("family", "border"), [("llama", 4), ("opt", 4), ("opt", 3)])
def test_some_prefixes_and_the_rest_are_all(family: str, border: int, tmp_path: Path) -> None:
    """Draws go by the place of the first sequence that is walked: a border inside of a batch means others there."""
    bench = make_bench(family, tmp_path)
    options, objective = bench.everywhere(PRUNED), MarginNoise()
    whole = bench.estimate(objective, options)
    parts = [bench.estimate(objective, options, start=0, stop=border), bench.estimate(objective, options, start=border)]
    for name in options:
        joined = np.concatenate([part[name].changes for part in parts])
        assert_near(joined, whole[name].changes, 1e-5, name)


def test_other_seeds_draw_otherwise(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path)
    options = bench.everywhere(PRUNED)
    request = EstimateRequest(options, "margin_noise")
    first, again, other = (
        GradientEstimator(bench.model, bench.reference, bench.treatments, MarginNoise(), seed=seed).estimate(request)
        for seed in (0, 0, 1)
    )
    for name in options:
        assert np.array_equal(first[name].changes, again[name].changes)
        assert not np.allclose(first[name].changes, other[name].changes, rtol=0.01)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_every_sequence_has_draws_of_its_own(family: str, tmp_path: Path) -> None:
    bench = make_bench(family, tmp_path)
    bench.reference.tokens = bench.reference.tokens[[0] * 6]
    bench.reference.remember_distribution(bench.model)
    for estimate in bench.estimate(MarginNoise(), bench.everywhere(PRUNED)).values():
        assert len({round(float(change), 12) for change in estimate.changes[:, 0]}) > 3


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", "bfloat16"),
        ("dbrx", "float16"),
        *rarely_cases([("llama", "float16"), ("dbrx", "bfloat16")]),
        *rarely_cases(("mixtral", dtype) for dtype in ("bfloat16", "float16")),
    ],
)
def test_low_precision_says_nearly_the_same(family: str, dtype: str, tmp_path: Path) -> None:
    """The same weights and draws, the arithmetic in half precision; experts have their gradients from autograd."""
    bench = make_bench(family, tmp_path, dtype=getattr(torch, dtype))
    low = load_model(ModelSettings(path=str(tmp_path), dtype=DType(dtype)))
    reference = Reference(bench.reference.tokens, bench.reference.prefix_tokens, bench.reference.batch)
    reference.remember_distribution(low)
    options = bench.everywhere(Treatment("magnitude", 0.5))
    expected = bench.estimate(MarginNoise(), options)
    found = Bench(low, reference).estimate(MarginNoise(), options)
    totals = [np.array([estimate.changes.mean() for estimate in each.values()]) for each in (found, expected)]
    assert totals[0].sum() == pytest.approx(totals[1].sum(), rel=0.15)
    assert np.corrcoef(*totals)[0, 1] > 0.9
