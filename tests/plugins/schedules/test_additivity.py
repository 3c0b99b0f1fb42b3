"""Do single effects add up? Their sum by the effect of the whole, against plain forward passes in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.artifacts.run_record import Record
from compressor.commands.run import Run, execute
from compressor.contracts import Compressor, KeepRequest, Plan, Prefixes
from compressor.evaluation.evaluator import SequenceValues
from compressor.models import Model, load_model
from compressor.plugins import installed
from compressor.search.additivity import StartingValues
from compressor.settings import DataSettings, ExportSettings, ModelSettings, Settings, TrackingSettings
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.budget import round
from compressor_plugins.schedules.budget.budget import Budget, EstimateBy, Granularity
from compressor_plugins.schedules.budget.convex_hull import Array
from compressor_plugins.schedules.budget.options import interpolate
from compressor_plugins.schedules.uniform import Uniform
from tests.support.budgets import Crossed, Uneven, play, requests_of
from tests.support.families import save_checkpoint


def test_lines_between_amounts_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    amounts = np.sort(generator.choice(np.arange(12) / 11, (40, 9)), axis=1)  # some of them equal
    values, wanted = amounts**2, generator.uniform(-0.1, 1.1, 40)
    expected = [np.interp(w, a, v) for w, a, v in zip(wanted, amounts, values, strict=True)]
    assert interpolate(amounts, values, wanted) == pytest.approx(expected)
    assert interpolate(amounts, values, amounts[:, 4]) == pytest.approx(values[:, 4])
    assert interpolate(amounts[:, :1], values[:, :1], wanted) == pytest.approx(values[:, 0])


@pytest.mark.parametrize("options", [{}, {"granularity": Granularity.row}, {"corrections": 0}])
def test_effects_that_add_up_do(options: dict[str, int]) -> None:
    for compressors in [("round",), ("prune", "round")] if "granularity" not in options else [("prune",)]:
        rehearsal = play(Budget([0.6], **options), *compressors, cls=Uneven)  # type: ignore[arg-type]
        (kept,) = requests_of(rehearsal, KeepRequest)
        assert kept.singles == {"kl": pytest.approx(rehearsal.damage(kept.plan), rel=2e-2)}


def test_effects_that_hurt_one_another_are_more_than_their_sum() -> None:
    rehearsal = play(Budget([0.6], corrections=0), "round", cls=Crossed)
    (kept,) = requests_of(rehearsal, KeepRequest)
    singles = sum(rehearsal.damage({name: treatment}) for name, treatment in kept.plan.items())
    assert kept.singles == {"kl": pytest.approx(singles)}
    assert singles < 0.9 * rehearsal.damage(kept.plan)


def run(folder: Path, schedule: object, *compressors: Compressor) -> tuple[Record, list[Run]]:
    base = save_checkpoint("llama", folder / "base", with_tokenizer=True)
    settings = Settings(
        metric={"kl": Kl(), "fdtm": Fdtm(), "divergent_perplexity": DivergentPerplexity()},
        compressor={compressor.name: compressor for compressor in compressors},
        schedule=schedule,
        model=ModelSettings(path=str(base)),
        data=DataSettings(prefixes=6, proof_prefixes=3, prefix_tokens=4, continuation_tokens=6),
        tracking=TrackingSettings(backend="none"),
        export=ExportSettings(format="dense", verify=False),
    )
    seen: list[Run] = []
    with pytest.MonkeyPatch.context() as patch:
        load = Run.load
        patch.setattr(Run, "load", lambda self, plugins: (load(self, plugins), seen.append(self))[0])
        return execute(settings, installed(), folder / "run", {}, "compressor run"), seen


def measure_effect(model: Model, tokens: Tensor, prefix: int, weights: dict[str, Tensor], metric: str) -> float:
    """Mean KL(base ‖ changed), FDT lost or nats per token gained, from two forward passes of the network itself."""

    def say() -> Tensor:
        with torch.no_grad():
            return model.network(input_ids=tokens, use_cache=False).logits[:, prefix - 1 : -1].double()

    before = say()
    with model.swapped(weights):
        after = say()
    if metric == "kl":
        one, other = before.log_softmax(-1), after.log_softmax(-1)
        return float((one.exp() * (one - other)).sum(-1).mean())
    if metric == "divergent_perplexity":
        said = tokens[:, prefix:, None]
        return float((before.log_softmax(-1).gather(-1, said) - after.log_softmax(-1).gather(-1, said)).mean())
    leading = (after.argmax(-1) == tokens[:, prefix:]).long().cumprod(1).sum(1).double()
    return float(leading.mean()) - (tokens.shape[1] - prefix)


@pytest.mark.parametrize("metric", ["kl", "fdtm"])
def test_the_ratio_is_that_of_plain_forward_passes(metric: str, tmp_path: Path) -> None:
    schedule = Budget(bits=6.0, objective=metric, estimate=EstimateBy.measured, corrections=1)
    record, (made,) = run(tmp_path, schedule, Int8(), Int4(group=16))
    kept: Plan = made.session.applied.kept
    base = load_model(ModelSettings(path=str(tmp_path / "base")))
    reference = made.setup.evaluators[Prefixes.SEARCH].reference
    weights = {name: made.setup.model.read(name) for name in kept}
    whole, *singles = (
        measure_effect(base, reference.tokens, reference.prefix_tokens, chosen, metric)
        for chosen in (weights, *({name: weight} for name, weight in weights.items()))
    )
    assert whole != 0 and len(singles) == len(kept) > 3
    assert record.rounds[0].additivity == pytest.approx(sum(singles) / whole, rel=1e-3)


@pytest.mark.parametrize(("settled", "used"), [(-1.0, 6), (float("inf"), 4)])
def test_blocks_of_prefixes_count_as_one(
    settled: float, used: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Estimates come by two prefixes at a time; how well the base predicts itself differs between them."""
    monkeypatch.setattr(round, "FIRST_PREFIXES", 2)
    monkeypatch.setattr(round, "SETTLED", settled)
    metric = "divergent_perplexity"
    schedule = Budget(bits=6.0, objective=metric, estimate=EstimateBy.measured, corrections=0)
    record, (made,) = run(tmp_path, schedule, Int8(), Int4(group=16))
    base = load_model(ModelSettings(path=str(tmp_path / "base")))
    reference = made.setup.evaluators[Prefixes.SEARCH].reference
    weights = {name: made.setup.model.read(name) for name in made.session.applied.kept}
    whole, *singles = (
        measure_effect(base, reference.tokens[:used], reference.prefix_tokens, chosen, metric)
        for chosen in (weights, *({name: weight} for name, weight in weights.items()))
    )
    assert whole > 0 and record.rounds[0].additivity == pytest.approx(sum(singles) / whole, rel=1e-3)


@pytest.mark.slow
def test_later_rounds_start_from_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round, "FIRST_PREFIXES", 2)
    monkeypatch.setattr(round, "SETTLED", -1.0)
    seen: list[tuple[float, Array]] = []
    close = StartingValues.close_round

    def look(started: StartingValues, singles: Mapping[str, float], values: SequenceValues) -> float | None:
        seen.append((singles["kl"], values["kl"][:, 0]))
        return close(started, singles, values)

    monkeypatch.setattr(StartingValues, "close_round", look)
    schedule = Budget([0.3, 0.6], estimate=EstimateBy.measured, corrections=0)
    record, _ = run(tmp_path, schedule, Magnitude())
    (first, before), (second, after) = seen
    ratios = [step.additivity for step in record.rounds]
    assert ratios == [pytest.approx(first / before.mean()), pytest.approx(second / (after.mean() - before.mean()))]
    assert abs(before[4:].mean() - before.mean()) > 0.05 * before.mean()  # the last block is not the whole


def test_it_is_told_where_it_is_known(tmp_path: Path) -> None:
    record, _ = run(tmp_path / "budget", Budget([0.3, 0.5], corrections=0), Magnitude())
    ratios = [step.additivity for step in record.rounds]
    assert all(ratio is not None and 0.05 < ratio < 20 for ratio in ratios)
    report = json.loads((tmp_path / "budget" / "run" / "report.json").read_text())
    assert [step["additivity"] for step in report["rounds"]] == ratios
    page = (tmp_path / "budget" / "run" / "report.html").read_text()
    assert ">additivity<" in page and "single effects" in page and "of the whole" in page
    record, _ = run(tmp_path / "uniform", Uniform([0.5]), Magnitude())
    assert [step.additivity for step in record.rounds] == [None]
    page = (tmp_path / "uniform" / "run" / "report.html").read_text()
    assert "additivity" not in page and "single effects" not in page
