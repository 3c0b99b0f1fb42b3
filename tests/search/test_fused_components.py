"""Fused components: one treatment for all that is loaded as one, whatever schedule decides."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.commands.run import execute
from compressor.contracts import (
    Best,
    BestRequest,
    Better,
    Component,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Offer,
    Problem,
    Schedule,
    ScoreRequest,
    SizeRequest,
    Treatment,
)
from compressor.errors import ConfigError
from compressor.models import load_model
from compressor.plugins import installed
from compressor.search.fused_components import FusedOracle, fuse, intersect, name_unit, open_dialogue
from compressor.settings import (
    ComponentSettings,
    DataSettings,
    ExportSettings,
    ModelSettings,
    Settings,
    TrackingSettings,
)
from compressor.testing.problems import DryRun
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.beam.beam import Beam
from compressor_plugins.schedules.budget.budget import Budget, Granularity
from compressor_plugins.schedules.evolution.evolution import Evolution
from compressor_plugins.schedules.fdt_allocation import FdtAllocation
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.plan import ReplayedPlan
from compressor_plugins.schedules.uniform import Uniform
from tests.support.families import FAMILIES, each, save_checkpoint

KINDS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
MLP = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
RANGE, LEVELS = Offer(by_row=True), Offer(levels=(0.5, 0.75))
SCHEDULES: dict[str, tuple[Schedule, Offer]] = {
    "uniform": (Uniform(targets=[0.3, 0.5]), RANGE),
    "budget": (Budget(targets=[0.4], objective="kl"), RANGE),
    "budget by row": (Budget(targets=[0.4], objective="kl", granularity=Granularity.row), RANGE),
    "budget of levels": (Budget(targets=[0.6], objective="kl"), LEVELS),
    "Algorithm 1": (FdtAllocation(targets=[0.3, 0.5]), RANGE),
    "global": (GlobalThreshold(targets=[0.5]), RANGE),
    "evolution": (Evolution(targets=[0.6], objective="kl"), LEVELS),
    "beam": (Beam(width=3, count=4), LEVELS),
}


def list_components(layers: int = 2) -> Iterator[Component]:
    for layer in range(layers):
        for leaf, kind in KINDS.items():
            shape = (4, 8) if kind in ("key", "value") else (8, 8)
            yield Component(f"model.layers.{layer}.self_attn.{leaf}", kind, layer, shape, 16)
        for leaf, kind in MLP.items():
            yield Component(f"model.layers.{layer}.mlp.{leaf}", kind, layer, (8, 12) if kind == "down" else (12, 8), 16)


def make_problem(offer: Offer) -> Problem:
    components = tuple(list_components())
    return Problem(
        components=components,
        offers={"a": {component.name: offer for component in components}},
        better={"fdtm": Better.HIGHER, "kl": Better.LOWER},
        tokens=32,
        estimable=frozenset({"kl"}),
        stored_bytes=4 * sum(component.parameters for component in components),
    )


def play(schedule: Schedule, problem: Problem) -> dict[str, Treatment]:
    """The plan that a schedule keeps when it decides for fused components."""
    dry_run = DryRun(problem)
    dialogue, oracle = open_dialogue(schedule, problem, dry_run, fuses=True)
    assert [*dialogue.converse(oracle)]
    return dry_run.kept


@pytest.mark.parametrize("case", SCHEDULES)
def test_whatever_a_schedule_decides_holds_for_the_whole_unit(case: str) -> None:
    schedule, offer = SCHEDULES[case]
    problem = make_problem(offer)
    kept = play(schedule, problem)
    assert kept and len({name.rpartition(".")[2] for name in kept}) > 1
    for members in fuse(problem.components).units.values():
        chosen = [kept.get(member.name) for member in members]
        if case != "budget by row":
            assert all(treatment == chosen[0] for treatment in chosen), case
        else:
            assert all((treatment is None) == (chosen[0] is None) for treatment in chosen)
            assert all(treatment.rows is not None for treatment in chosen if treatment)
            given = [(t.rows, m) for t, m in zip(chosen, members, strict=True) if t is not None and t.rows is not None]
            assert all(len(rows) == member.shape[0] for rows, member in given)


def test_units_are_what_servers_load_as_one() -> None:
    units = fuse(list_components(1)).units
    assert {name: [member.name.rpartition(".")[2] for member in members] for name, members in units.items()} == {
        "model.layers.0.self_attn.qkv": ["q_proj", "k_proj", "v_proj"],
        "model.layers.0.self_attn.o_proj": ["o_proj"],
        "model.layers.0.mlp.gate_up": ["gate_proj", "up_proj"],
        "model.layers.0.mlp.down_proj": ["down_proj"],
    }


@pytest.mark.parametrize("family", each(FAMILIES))
def test_every_component_of_a_family_is_in_one_unit(family: str, tmp_path: Path) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint(family, tmp_path))), ComponentSettings())
    units = fuse(model.components.values()).units
    assert sorted(member.name for members in units.values() for member in members) == sorted(model.components)
    for name, members in units.items():
        kinds = {member.kind for member in members}
        assert len({member.layer for member in members}) == 1
        assert len(members) == 1 or "experts" in name or kinds <= {"query", "key", "value"} or kinds <= {"gate", "up"}
    layers = {component.layer for component in model.components.values() if "experts" in component.name}
    assert sum(name.endswith("experts") for name in units) == len(layers)


def test_alone_components_keep_their_names() -> None:
    only = [component for component in list_components() if component.kind in ("query", "down")]
    assert [*fuse(only).units] == [component.name for component in only]


def test_shared_experts_are_an_mlp() -> None:
    shared = Component("model.layers.1.mlp.shared_experts.gate_proj", "gate", 1, (4, 4), 16)
    assert name_unit(shared) == "model.layers.1.mlp.shared_experts.gate_up"
    routed = Component("model.layers.1.mlp.experts.3.gate_proj", "gate", 1, (4, 4), 16)
    stacked = Component("model.layers.1.mlp.experts.gate_up_proj:3.gate", "gate", 1, (4, 4), 16)
    assert name_unit(routed) == name_unit(stacked) == "model.layers.1.mlp.experts"


def test_answers_are_sums_over_members() -> None:
    fusion = fuse(list_components(1))
    unit, alone = "model.layers.0.self_attn.qkv", "model.layers.0.self_attn.o_proj"
    members = [member.name for member in fusion.units[unit]]
    options = {unit: [Treatment("a", 0.5), None], alone: [Treatment("a", 0.5)]}
    request = EstimateRequest(options, "kl", at={unit: Treatment("a", 0.75)}, by_row=True)
    numbered = Numbered(make_problem(RANGE))
    oracle = FusedOracle(numbered, fusion)
    found = oracle.estimate(request)
    (expanded,) = numbered.asked
    assert {*expanded.options} == {*members, alone} and {*expanded.at} == {*members}
    assert [*found] == [unit, alone]
    assert (found[unit].changes == 0 + 1 + 2).all() and found[unit].changes.shape == (3, 2)
    assert found[unit].rows[:, 0].tolist() == [0, 0, 1, 1, 2, 2] and found[unit].reached and not found[alone].reached
    assert oracle.sizes(SizeRequest(options)) == {unit: [30, 60], alone: [10]}


@dataclass
class Numbered(DryRun):
    """The i-th component of a request changes the objective by i; its options store 10 and 20 bits."""

    asked: list[Any] = field(default_factory=list)

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        self.asked.append(request)
        return {
            name: Estimate(np.full((3, len(chosen)), number), np.full((2, len(chosen)), number), reached=number == 1)
            for number, (name, chosen) in enumerate(request.options.items())
        }

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        self.asked.append(request)
        return {name: [10, 20, 30][: len(chosen)] for name, chosen in request.options.items()}


def test_rows_go_to_their_members() -> None:
    fusion = fuse(list_components(1))
    rows = tuple(np.linspace(0, 1, 16).tolist())
    spread = fusion.spread({"model.layers.0.self_attn.qkv": Treatment("a", 0.5, rows=rows)})
    assert sum((treatment.rows or () for treatment in spread.values()), ()) == rows
    for treatment in spread.values():
        assert treatment.rows and treatment.amount == pytest.approx(np.mean(treatment.rows))


def test_rows_of_options_go_to_their_members_too() -> None:
    fusion = fuse(list_components(1))
    rows = [tuple(np.linspace(0, last, 16).tolist()) for last in (0.5, 1.0)]
    options = {"model.layers.0.self_attn.qkv": [None, *(Treatment("a", sum(r) / 16, rows=r) for r in rows)]}
    for request in (EstimateRequest(options, "kl", by_row=True), SizeRequest(options)):
        numbered = Numbered(make_problem(RANGE))
        request.ask(FusedOracle(numbered, fusion))
        (expanded,) = numbered.asked
        found = dict(zip("qkv", expanded.options.values(), strict=True))
        assert [choices[0] for choices in found.values()] == [None] * 3
        for place, expected in enumerate(rows, 1):
            parts = {kind: choices[place] for kind, choices in found.items()}
            assert {kind: part and part.rows for kind, part in parts.items()} == {
                "q": expected[:8],
                "k": expected[8:12],
                "v": expected[12:],
            }
            assert all(part and part.amount == pytest.approx(np.mean(part.rows or ())) for part in parts.values())


def list_experts(hidden: int, inner: int) -> tuple[Component, ...]:
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return tuple(
        Component(f"model.layers.0.mlp.experts.{number}.{kind}_proj", kind, 0, shape, 16)
        for number in range(2)
        for kind, shape in shapes.items()
    )


def test_rows_of_several_lengths_are_refused_and_equal_ones_work() -> None:
    budget = Budget(targets=[0.4], objective="kl", granularity=Granularity.row)
    others = tuple(list_components(1))
    for inner, works in ((8, True), (12, False)):
        components = (*others, *list_experts(8, inner))
        offers = {"a": {component.name: RANGE for component in components}}
        problem = replace(make_problem(RANGE), components=components, offers=offers)
        assert {offer.by_row for offer in fuse(components).fuse_problem(problem).offers["a"].values()} == {True, works}
        if works:
            kept = play(budget, problem)
            rows = {c.name: treatment.rows for c in components if (treatment := kept.get(c.name))}
            assert all(len(rows[c.name] or ()) == c.shape[0] for c in components)
        else:
            with pytest.raises(
                ConfigError, match=r"per row, got a, and `model\.layers\.0\.mlp\.experts` fuses"
            ) as caught:
                open_dialogue(budget, problem, DryRun(problem), fuses=True)
            assert str(caught.value).isprintable() and "or components.fuse=false" in str(caught.value)


def test_offers_are_what_all_members_have() -> None:
    problem = make_problem(RANGE)
    first = problem.components[0].name
    offers = {**problem.offers["a"], first: Offer(levels=(0.25, 0.5))}
    second = problem.components[1].name
    offers[second] = Offer(low=0.3, high=0.9)
    fused = fuse(problem.components).fuse_problem(Problem(problem.components, {"a": offers}, problem.better, 32))
    assert fused.offers["a"]["model.layers.0.self_attn.qkv"].levels == (0.5,)
    narrow = {**problem.offers["a"], second: Offer(low=0.3, high=0.9)}
    fused = fuse(problem.components).fuse_problem(Problem(problem.components, {"a": narrow}, problem.better, 32))
    assert fused.offers["a"]["model.layers.0.self_attn.qkv"] == Offer(low=0.3, high=0.9)


class Recorder(Schedule):
    """Asks one thing of each kind, and keeps what it hears."""

    name = "recorder"

    def search(self, problem):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201 - as in the contract
        unit = problem.components[0].name
        plan = {unit: Treatment("a", 0.5)}
        self.scores = yield ScoreRequest([plan, {}], ["kl"])
        self.best = yield BestRequest([plan, {}], "kl", 1)
        self.kept = yield KeepRequest(plan)


@dataclass
class Heard(DryRun):
    """Answers with what the test wants, and notes what it was asked."""

    asked: list[Any] = field(default_factory=list)

    def score(self, request: ScoreRequest) -> Any:  # noqa: ANN401 - no scores
        self.asked.append(request)
        return "first", "second"

    def best(self, request: BestRequest) -> Best:
        return Best((1,), (None, {}))

    def keep(self, request: KeepRequest) -> dict[str, float]:
        amounts = {component.name: 0.0 for component in self.problem.components}
        return amounts | {"model.layers.0.self_attn.q_proj": 0.8, "model.layers.0.self_attn.k_proj": 0.2}


def test_trials_keep_their_order_and_amounts_are_means() -> None:
    schedule, problem = Recorder(), make_problem(RANGE)
    heard = Heard(problem)
    dialogue, oracle = open_dialogue(schedule, problem, heard, fuses=True)
    assert len([*dialogue.converse(oracle)]) == 3
    assert [[len(plan) for plan in request.trials] for request in heard.asked] == [[3, 0]]
    assert schedule.scores == ("first", "second") and schedule.best.chosen == (1,)
    assert schedule.kept["model.layers.0.self_attn.qkv"] == pytest.approx((0.8 * 64 + 0.2 * 32) / 128)


def test_a_schedule_that_repeats_sees_every_component(tmp_path: Path) -> None:
    """End to end: a fused beam, and its plan again."""
    common = {
        "metric": {"fdtm": Fdtm()},
        "compressor": {"int8": Int8(granularity="tensor")},  # type: ignore[arg-type]
        "data": DataSettings(prefixes=4, proof_prefixes=2, prefix_tokens=6, continuation_tokens=8),
        "model": ModelSettings(path=str(save_checkpoint("llama", tmp_path / "llama"))),
        "components": ComponentSettings(fuse=True),
        "export": ExportSettings(verify=False),
        "tracking": TrackingSettings(backend="none"),  # type: ignore[arg-type]
    }
    plans = []
    for name, schedule in (("beam", Beam(width=2, count=3)), ("again", ReplayedPlan(str(tmp_path / "beam/plan.json")))):
        (tmp_path / name).mkdir()
        execute(Settings(schedule=schedule, **common), installed(), tmp_path / name, {}, "compressor run")  # type: ignore[arg-type]
        plans.append(json.loads((tmp_path / name / "plan.json").read_text()))
    assert plans[0] == plans[1]
    treated = {name_unit(c) for c in list_components() if c.name in plans[0]}
    assert len(treated) == 3
    whole = [c.name for c in list_components() if name_unit(c) in treated]
    assert sorted(plans[0]) == sorted(whole)


def test_a_budget_of_rows_runs_on_fused_components(tmp_path: Path) -> None:
    settings = Settings(
        metric={"kl": Kl()},
        compressor={"magnitude": Magnitude()},
        schedule=Budget([0.4], corrections=2, granularity=Granularity.row),
        data=DataSettings(prefixes=4, proof_prefixes=2, prefix_tokens=6, continuation_tokens=8),
        model=ModelSettings(path=str(save_checkpoint("llama", tmp_path / "llama"))),
        components=ComponentSettings(fuse=True),
        export=ExportSettings(verify=False),
        tracking=TrackingSettings(backend="none"),  # type: ignore[arg-type]
    )
    record = execute(settings, installed(), tmp_path / "run", {}, "compressor run")
    assert 0.4 <= record.rounds[0].amount < 0.4 + 1 / 32  # whole weights of rows of 32 and 48
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert len(plan) == 14 and all(treatment["rows"] for treatment in plan.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Offer(levels=(0.25,)), Offer(levels=(0.5,))),
        (Offer(high=0.25), Offer(levels=(0.5,))),
        (Offer(high=0.25, by_row=True), Offer(low=0.5, by_row=True)),
    ],
)
def test_offers_without_a_common_amount_leave_a_unit_unchanged(one: Offer, other: Offer) -> None:
    assert intersect(one, other) == intersect(other, one) == Offer(high=0.0)
