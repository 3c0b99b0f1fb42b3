"""Algorithm 1 as a dialogue, in a fake world whose components add up their harm; no model anywhere."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.contracts import (
    Better,
    Component,
    Dialogue,
    KeepRequest,
    Offer,
    Plan,
    Problem,
    Request,
    Score,
    ScoreRequest,
    Treatment,
)
from compressor.errors import ConfigError
from compressor_plugins.schedules.fdt_allocation import FdtAllocation
from compressor_plugins.schedules.targets import Statistic

TOKENS = 100
PAPER = [0.20, 0.35, 0.45, 0.55, 0.60, 0.65, 0.70, 0.75]


@dataclass
class World:
    """A model of independent components: its value is `respond` of sum_c harm_c(amount_c)."""

    harm: Mapping[str, Callable[[float], float]]
    parameters: Mapping[str, int]
    respond: Callable[[float], float] = lambda harm: TOKENS * float(np.exp(-harm))
    better: Better = Better.HIGHER
    high: Mapping[str, float] = field(default_factory=dict)
    low: Mapping[str, float] = field(default_factory=dict)
    ranker: str = "fdtm"
    spread: Callable[[float], float] = lambda value: value + 1.0
    amounts: dict[str, float] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    after: list[dict[str, float]] = field(default_factory=list)
    """Amounts at the end of each round."""

    def problem(self) -> Problem:
        components = [Component(name, "query", 0, (1, size), 16) for name, size in self.parameters.items()]
        offers = {name: Offer(low=self.low.get(name, 0.0), high=self.high.get(name, 1.0)) for name in self.parameters}
        return Problem(components, {"magnitude": offers}, {self.ranker: self.better}, TOKENS)

    def value(self, plan: Plan) -> float:
        assert all(self.low.get(c, 0.0) <= treatment.amount <= self.high.get(c, 1.0) for c, treatment in plan.items())
        amounts = dict.fromkeys(self.parameters, 0.0) | self.amounts | {c: t.amount for c, t in plan.items()}
        return self.respond(sum(self.harm[name](amount) for name, amount in amounts.items()))

    def answer(self, request: Request) -> object:
        if isinstance(request, ScoreRequest):
            return tuple({self.ranker: make_score(self.value(plan), self.spread)} for plan in request.trials)
        assert isinstance(request, KeepRequest)
        for name, treatment in request.plan.items():
            self.amounts[name] = round(treatment.amount * self.parameters[name]) / self.parameters[name]
        self.after.append(dict(self.amounts))
        return self.after[-1]

    def run(self, schedule: FdtAllocation) -> list[KeepRequest]:
        dialogue = Dialogue(schedule, self.problem())
        while (request := dialogue.propose()) is not None:
            self.requests.append(request)
            dialogue.tell(self.answer(request))
        return [request for request in self.requests if isinstance(request, KeepRequest)]

    def mean(self, amounts: Mapping[str, float]) -> float:
        return sum(size * amounts[name] for name, size in self.parameters.items()) / sum(self.parameters.values())


def make_score(value: float, spread: Callable[[float], float] = lambda value: value + 1.0) -> Score:
    return Score(value, value - 1, value - 2, spread(value), value, value, value, value, value, value, 10)


def amounts_of(request: KeepRequest) -> dict[str, float]:
    return {name: treatment.amount for name, treatment in request.plan.items()}


def make_world(seed: int, components: int = 12, **options: Any) -> World:  # noqa: ANN401 - fields of World
    """Sensitivities over three orders of magnitude; some components do no harm at first: a plateau."""
    rng = np.random.default_rng(seed)
    scale, free = 10 ** rng.uniform(-2, 1, components), rng.choice([0.0, 0.4], components)
    parameters = rng.integers(1_000, 50_000, components).tolist()
    names = [f"layers.{index}.q" for index in range(components)]
    shapes = zip(names, scale, free, strict=True)
    harm = {name: lambda amount, s=s, f=f: float(s * max(amount - f, 0.0) ** 2) for name, s, f in shapes}
    return World(harm, dict(zip(names, parameters, strict=True)), **options)


def test_two_components_by_hand() -> None:
    points = {"a": {0.1: 8.0, 0.3: 4.0}, "b": {0.1: 10.0, 0.3: 9.0}}
    dialogue = Dialogue(FdtAllocation(targets=[0.2]), World({}, {"a": 100, "b": 100}).problem())
    request = dialogue.propose()
    assert isinstance(request, ScoreRequest)
    found = [[(name, round(t.amount, 12)) for name, t in plan.items()] for plan in request.trials]
    assert found == [[], [("a", 0.1)], [("a", 0.3)], [("b", 0.1)], [("b", 0.3)]]
    assert list(request.metrics) == ["fdtm"]
    values = [10.0, *(points[trial[0][0]][trial[0][1]] for trial in found[1:])]
    dialogue.tell(tuple({"fdtm": make_score(value)} for value in values))
    kept = dialogue.propose()
    assert isinstance(kept, KeepRequest) and kept.target == 0.2
    # level 9 - u: a = (1 + u) / 20, b = 0.3 + 0.7 u / 9, a + b = 0.4, so u = 9/23
    assert amounts_of(kept) == pytest.approx({"a": 8 / 115, "b": 38 / 115})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "respond", [lambda h: TOKENS * float(np.exp(-h)), lambda h: float(TOKENS * np.exp(-h) // 10 * 10)]
)
def test_the_rounds_of_the_paper_hit_every_target(seed: int, respond: Callable[[float], float]) -> None:
    world = make_world(seed, respond=respond)
    kept = world.run(FdtAllocation(targets=PAPER))
    assert [request.target for request in kept] == PAPER
    before = dict.fromkeys(world.parameters, 0.0)
    for request, after in zip(kept, world.after, strict=True):
        assert world.mean(amounts_of(request)) == pytest.approx(request.target, abs=1e-9)
        assert all(before[name] - 1e-12 <= amount <= 1.0 for name, amount in amounts_of(request).items())
        before = after
    assert world.mean(before) == pytest.approx(0.75, abs=1e-4)  # whole weights


@pytest.mark.parametrize("seed", range(3))
def test_a_round_is_algorithm_1(seed: int) -> None:
    """Against curves and a level found here by scanning, in the second round, where the curves begin in mid-air."""
    world = make_world(seed, components=5)
    kept = world.run(FdtAllocation(targets=[0.2, 0.35]))
    current = dict(world.after[0])
    fresh = make_world(seed, components=5, amounts=dict(current))
    added = 0.35 - fresh.mean(current)
    fine, curves = np.linspace(0, 1, 100_001), []
    for name, start in current.items():
        places = [start, min(start + added / 2, 1.0), min(start + 1.5 * added, 1.0), 1.0]
        values = [fresh.value({name: Treatment("magnitude", place)}) for place in places[:3]] + [0.0]
        curve = np.interp(fine, places, np.minimum.accumulate(values))
        curves.append(np.where(fine < start, np.inf, curve))
    weights = np.array(list(fresh.parameters.values()))
    levels = np.linspace(TOKENS, 0, 100_001)
    reached = np.stack([fine[np.maximum(np.searchsorted(-c, -levels, side="right") - 1, 0)] for c in curves])
    stop = np.argmax(weights @ reached / weights.sum() >= 0.35 - 1e-9)
    found = np.array(list(amounts_of(kept[1]).values()))
    at_stop = np.array([np.interp(a, fine, c) for a, c in zip(np.clip(found + 1e-6, 0, 1), curves, strict=True)])
    assert np.all(at_stop >= levels[stop] - 0.01)
    assert np.all(found <= reached[:, stop] + 1e-4)
    assert np.all(found >= reached[:, max(stop - 1, 0)] - 1e-4)


def test_points_of_later_rounds_lie_on_top_of_what_was_kept() -> None:
    world = make_world(0, components=3)
    world.run(FdtAllocation(targets=[0.5, 0.9]))
    score, kept = world.requests[2], world.after[0]
    assert isinstance(score, ScoreRequest) and score.trials[0] == {}
    added = 0.9 - world.mean(kept)
    for name, start in kept.items():
        places = [plan[name].amount for plan in score.trials if name in plan]
        expected = {min(start + share * added, 1.0) for share in (0.5, 1.5)} - {1.0}  # removed is 0 by definition
        assert places == pytest.approx(sorted(expected))


def test_nothing_is_asked_of_components_that_are_gone() -> None:
    harm = {"gone": lambda amount: 0.0, "kept": lambda amount: 5.0 * amount}
    world = World(harm, {"gone": 1000, "kept": 1000}, high={"gone": 0.3, "kept": 0.9})
    kept = world.run(FdtAllocation(targets=[0.25, 0.5, 0.6]))
    assert amounts_of(kept[-1]) == pytest.approx({"gone": 0.3, "kept": 0.9})
    assert isinstance(last := world.requests[-2], ScoreRequest) and all("gone" not in plan for plan in last.trials)


def test_other_rankers_measure_the_removed_component() -> None:
    high = {"layers.0.q": 0.9}
    world = make_world(1, better=Better.LOWER, ranker="kl", respond=lambda harm: harm, high=high)
    (kept,) = world.run(FdtAllocation(targets=[0.4], ranker="kl"))
    assert isinstance(request := world.requests[0], ScoreRequest) and len(request.trials) == 1 + 3 * len(
        world.parameters
    )
    assert all({name: Treatment("magnitude", high.get(name, 1.0))} in request.trials for name in world.parameters)
    assert world.mean(amounts_of(kept)) == pytest.approx(0.4, abs=1e-9)
    mirrored = make_world(1, better=Better.HIGHER, ranker="negative", respond=lambda harm: -harm, high=high)
    (same,) = mirrored.run(FdtAllocation(targets=[0.4], ranker="negative"))
    assert amounts_of(same) == amounts_of(kept)


def test_a_model_that_breaks_does_not_break_the_search() -> None:
    runs = []
    for bad in (float("nan"), float("inf")):
        world = make_world(2, better=Better.LOWER, ranker="kl", respond=lambda h, bad=bad: h if h < 0.05 else bad)
        runs.append([amounts_of(request) for request in world.run(FdtAllocation(targets=[0.3, 0.9], ranker="kl"))])
        assert [world.mean(amounts) for amounts in runs[-1]] == pytest.approx([0.3, 0.9], abs=1e-9)
    assert runs[0] == runs[1]


def test_the_statistic_is_the_one_asked_for() -> None:
    """Here p75 is the eighth power of the mean: another world, in which every harm weighs eight times as much."""
    harm = {"a": lambda amount: amount, "b": lambda amount: 2 * amount}
    mean, p75 = (World(harm, {"a": 100, "b": 100}, spread=lambda value: value**8 / TOKENS**7) for _ in range(2))
    (by_mean,) = mean.run(FdtAllocation(targets=[0.3]))
    (by_p75,) = p75.run(FdtAllocation(targets=[0.3], statistic=Statistic.p75))
    assert by_mean != by_p75
    octave = World(harm, {"a": 100, "b": 100}, respond=lambda harm: TOKENS * float(np.exp(-8 * harm)))
    (expected,) = octave.run(FdtAllocation(targets=[0.3]))
    assert amounts_of(by_p75) == pytest.approx(amounts_of(expected))


def test_a_lower_bound_of_the_offer_is_kept() -> None:
    world = make_world(3, components=4, low=dict.fromkeys([f"layers.{index}.q" for index in range(4)], 0.25))
    kept = world.run(FdtAllocation(targets=[0.3, 0.4, 0.6]))
    assert all(min(amounts_of(request).values()) >= 0.25 for request in kept)
    assert [world.mean(amounts_of(request)) for request in kept] == pytest.approx([0.3, 0.4, 0.6], abs=1e-9)


def test_a_target_that_is_passed_already_changes_nothing() -> None:
    dialogue = Dialogue(FdtAllocation(targets=[0.2, 0.3]), World({}, {"a": 10}).problem())
    dialogue.tell(tuple({"fdtm": make_score(50.0)} for _ in range(3)))
    dialogue.tell({"a": 0.4})
    assert dialogue.propose() == KeepRequest({"a": Treatment("magnitude", 0.4)}, 0.3)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.floats(0.05, 0.95), min_size=1, max_size=3, unique=True))
def test_properties_of_any_world(seed: int, targets: list[float]) -> None:
    world = make_world(seed, components=6)
    kept = world.run(FdtAllocation(targets=sorted(targets)))
    before = dict.fromkeys(world.parameters, 0.0)
    for request, after in zip(kept, world.after, strict=True):
        assert all(before[name] - 1e-12 <= amount <= 1.0 for name, amount in amounts_of(request).items())
        before = after
    assert world.mean(amounts_of(kept[0])) == pytest.approx(kept[0].target, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)))
def test_the_order_of_components_does_not_matter(order: list[int]) -> None:
    straight, shuffled = make_world(5, components=6), make_world(5, components=6)
    names = list(straight.parameters)
    shuffled.parameters = {names[index]: straight.parameters[names[index]] for index in order}
    found, same = (world.run(FdtAllocation(targets=[0.3]))[0] for world in (straight, shuffled))
    assert amounts_of(same) == pytest.approx(amounts_of(found), abs=1e-9)


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=6), st.floats(0.05, 0.9))
@settings(deadline=None, max_examples=50)
def test_the_more_sensitive_of_equal_shapes_gets_less(scales: list[float], target: float) -> None:
    names = [f"c{index}" for index in range(len(scales))]
    harm = {name: lambda amount, s=s: s * amount**1.5 for name, s in zip(names, scales, strict=True)}
    (kept,) = World(harm, dict.fromkeys(names, 1000)).run(FdtAllocation(targets=[target]))
    by_scale = [amounts_of(kept)[name] for _, name in sorted(zip(scales, names, strict=True))]
    assert all(less >= more - 1e-9 for less, more in itertools.pairwise(by_scale))


def test_an_unknown_ranker_suggests_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"^unknown metric `fdt` in `schedule.ranker`; did you mean `fdtm`\?$"):
        Dialogue(FdtAllocation(ranker="fdt"), World({}, {"a": 1}).problem())
    assert FdtAllocation(ranker="kl").ranks_by() == ("kl",)
