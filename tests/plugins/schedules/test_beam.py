"""The beam against brute force; what it is asked, where it ends, and what it keeps on its way."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.contracts import (
    Best,
    BestRequest,
    Better,
    Component,
    Dialogue,
    KeepRequest,
    Offer,
    Plan,
    Prefixes,
    Problem,
    Scores,
    Treatment,
)
from compressor.errors import ConfigError
from compressor.search.ranking import choose_best
from compressor.testing.problems import DryRun, flat_score
from compressor_plugins.schedules.beam.beam import Beam
from compressor_plugins.schedules.targets import Statistic

BETTER = {"fdtm": Better.HIGHER, "kl": Better.LOWER}
ALL = 10**6
INT8 = Offer(levels=(0.5,))


@dataclass
class Additive(DryRun):
    """Every treatment costs what `costs` says, by component and amount; a plan costs the sum, and `extra` for a pair.

    All trials have scores, as in an exact run.
    """

    costs: Sequence[float] = ()
    extra: Mapping[frozenset[str], float] = field(default_factory=dict)

    def damage(self, plan: Plan) -> float:
        order = [component.name for component in self.problem.components]
        total = sum(self.costs[order.index(name)] * treatment.amount for name, treatment in plan.items())
        return total + sum(cost for pair, cost in self.extra.items() if pair <= set(plan))

    def score_plan(self, plan: Plan, metrics: Sequence[str], prefixes: Prefixes) -> Scores:
        damage = self.damage(plan)
        return {n: flat_score(-damage if self.problem.better[n] is Better.HIGHER else damage) for n in metrics}

    def best(self, request: BestRequest) -> Best:
        scores = [self.score_plan(plan, (request.metric,), Prefixes.SEARCH) for plan in request.trials]
        return choose_best(request, self.problem.better[request.metric], scores)


def make_problem(count: int, offer: Offer = INT8, *compressors: str) -> Problem:
    components = [Component(f"layers.{index}.q", "query", index, (1, 100 * (index + 1)), 16) for index in range(count)]
    offers = {component.name: offer for component in components}
    return Problem(components, dict.fromkeys(compressors or ("int8",), offers), BETTER, tokens=32, prefixes=8)


def play(problem: Problem, schedule: Beam, **given: Any) -> Additive:  # noqa: ANN401 - fields of Additive
    rehearsal = Additive(problem, **given)
    rehearsal.play(schedule)
    return rehearsal


def asked(rehearsal: DryRun) -> list[BestRequest]:
    return [request for request in rehearsal.requests if isinstance(request, BestRequest)]


def kept(rehearsal: DryRun) -> KeepRequest:
    (request,) = (request for request in rehearsal.requests if isinstance(request, KeepRequest))
    return request


COSTS = st.lists(st.integers(1, 1000).map(float), min_size=1, max_size=6)
NAMES = st.sampled_from([f"layers.{index}.q" for index in range(6)])
PAIRS = st.dictionaries(st.frozensets(NAMES, min_size=2, max_size=2), st.floats(0, 300))


@settings(deadline=None, max_examples=60)
@given(COSTS, PAIRS, st.sampled_from(["fdtm", "kl"]), st.booleans(), st.data())
def test_an_endless_width_is_brute_force(
    costs: list[float], extra: dict[frozenset[str], float], ranker: str, two: bool, data: st.DataObject
) -> None:
    offer = Offer(levels=(0.5, 0.75)) if two else INT8
    problem, count = make_problem(len(costs), offer), data.draw(st.integers(1, len(costs)))
    found = play(problem, Beam(ALL, ranker, count=count), costs=costs, extra=extra)
    names = [component.name for component in problem.components]
    plans = [
        dict(zip(chosen, map(Treatment, ["int8"] * count, amounts), strict=True))
        for chosen in itertools.combinations(names, count)
        for amounts in itertools.product(offer.levels, repeat=count)
    ]
    assert found.damage(found.kept) == pytest.approx(min(map(found.damage, plans)))
    last = asked(found)[-1]
    assert sorted(map(repr, last.trials)) == sorted(map(repr, plans))  # each once, in the order of components


@settings(deadline=None, max_examples=40)
@given(COSTS, PAIRS)
def test_a_width_of_one_is_greedy(costs: list[float], extra: dict[frozenset[str], float]) -> None:
    problem = make_problem(len(costs))
    found = play(problem, Beam(1, "kl"), costs=costs, extra=extra)
    plan: dict[str, Treatment] = {}
    names = [component.name for component in problem.components]
    for waypoint in kept(found).curve:
        options = [{**plan, name: Treatment("int8", 0.5)} for name in names if name not in plan]
        plan = min(options, key=found.damage)
        assert waypoint.plan == plan and waypoint.value == pytest.approx(found.damage(plan))
    assert kept(found).plan == plan and len(plan) == len(names)
    assert [len(request.trials) for request in asked(found)] == list(range(len(names), 0, -1))


def test_a_wider_beam_escapes_a_trap() -> None:
    """The cheapest first step is in every bad pair."""
    costs = [1.0, 2.0, 2.5, 9.0]
    extra = {frozenset(["layers.0.q", f"layers.{i}.q"]): 50.0 for i in (1, 2, 3)}
    narrow, wide = (play(make_problem(4), Beam(w, "kl", count=2), costs=costs, extra=extra) for w in (1, 3))
    assert {*wide.kept} == {"layers.1.q", "layers.2.q"} and "layers.0.q" in narrow.kept


def test_duplicates_are_asked_about_once() -> None:
    found = play(make_problem(5), Beam(ALL, "kl"), costs=[1.0] * 5)
    assert [len(request.trials) for request in asked(found)] == [5, 10, 10, 5, 1]
    two = play(make_problem(5), Beam(2, "kl"), costs=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert [len(request.trials) for request in asked(two)][:2] == [5, 4 + 4 - 1]


@pytest.mark.parametrize(("ranker", "worst"), [("kl", max), ("fdtm", min)])
def test_bounds_are_the_worst_of_the_plans_inside(ranker: str, worst: Any) -> None:  # noqa: ANN401
    found = play(make_problem(4), Beam(3, ranker, Statistic.mean), costs=[4.0, 1.0, 3.0, 2.0])
    first, second, *_ = asked(found)
    assert set(first.bounds) == {None} and (first.metric, first.count, first.statistic) == (ranker, 3, "mean")
    scored = zip(first.trials, found.answers[0].scores, strict=True)
    singles = {name: scores[ranker].mean for plan, scores in scored for name in plan}
    assert list(second.bounds) == [worst(singles[name] for name in plan) for plan in second.trials]


def test_what_was_dropped_gives_no_bound() -> None:
    """A run that measured only what it chose: a plan is bounded by those that went on."""
    rehearsal = DryRun(make_problem(4))
    rehearsal.play(Beam(1, "kl"))
    _, second, *_ = asked(rehearsal)
    assert len(second.trials) == 3 and len(set(second.bounds)) == 1 and None not in second.bounds


def test_it_ends_before_the_floor() -> None:
    costs = [2.0, 4.0, 6.0, 8.0]
    for ranker, floor in (("kl", 3.5), ("fdtm", -3.5)):
        found = play(make_problem(4), Beam(2, ranker, floor=floor), costs=costs)
        assert {*found.kept} == {"layers.0.q", "layers.1.q"}
        request = kept(found)
        assert [len(waypoint.plan) for waypoint in request.curve] == [1, 2, 3]
        (note,) = request.notes
        assert note.startswith("The beam treats 2 of 4 components, 30.0% of their weights")
        assert note.endswith(f"worse than the floor of {floor:g}.")
    nothing = play(make_problem(4), Beam(2, "kl", floor=0.5), costs=costs)
    assert nothing.kept == {} and len(kept(nothing).curve) == 1


def test_it_ends_at_a_size() -> None:
    """Packed bits are the share that stays: half of 16 for a treated component."""
    found = play(make_problem(4), Beam(2, "kl", bits=14.0), costs=[1.0, 2.0, 3.0, 4.0])
    assert {*found.kept} == {"layers.0.q", "layers.1.q"}  # 0.3 of the weights at 8 bits: 13.6 in the mean
    assert kept(found).notes[0].endswith("; they take 13.6 bits per weight.") and kept(found).target is None
    with pytest.raises(ConfigError, match=r"`schedule.bits` is 7 per weight, int8 stores at least 8, scales"):
        play(make_problem(4), Beam(bits=7.0), costs=[1.0] * 4)


@settings(deadline=None, max_examples=60)
@given(COSTS, st.floats(4.0, 16.0), st.integers(1, 4))
def test_a_size_is_reached_though_mild_options_cost_less(costs: list[float], bits: float, width: int) -> None:
    """Costs grow with amounts, so that a free beam would take the mildest option everywhere, which may be too much."""
    found = play(make_problem(len(costs), Offer(levels=(0.5, 0.75))), Beam(width, "kl", bits=bits), costs=costs)
    parameters = {component.name: component.parameters for component in found.problem.components}
    removed = sum(parameters[name] * treatment.amount for name, treatment in found.kept.items())
    assert 16 - 16 * removed / sum(parameters.values()) <= bits + 1e-9
    assert len(kept(found).notes) == 1
    assert all(len(plan) == depth for depth, request in enumerate(asked(found), 1) for plan in request.trials)


@dataclass
class Growing(Additive):
    """Treatments of some components take twice as much as none, as groups may that a narrow matrix does not fill."""

    grown: Sequence[str] = ()

    def size(self, name: str, treatment: Treatment | None) -> int:
        size = super().size(name, None)
        return 2 * size if treatment and name in self.grown else super().size(name, treatment)


@pytest.mark.parametrize(("bits", "treated"), [(12.0, [0, 1, 2, 3]), (9.5, [1, 2, 3]), (8.8, [1, 2, 3])])
def test_what_grows_is_left_alone_where_the_size_needs_it(bits: float, treated: list[int]) -> None:
    growing = Growing(make_problem(4), grown=["layers.0.q"], costs=[0.1, 1.0, 2.0, 3.0])
    growing.play(Beam(1, "kl", bits=bits))
    assert [*growing.kept] == [f"layers.{index}.q" for index in treated]
    every = Growing(make_problem(1), grown=["layers.0.q"], costs=[1.0])
    every.play(Beam(1, "kl", bits=16.0))
    assert every.kept == {} and kept(every).notes[0].endswith("; every further treatment would take more bits.")


def test_a_size_that_leaves_room_changes_no_trial() -> None:
    problem, costs = make_problem(4), [3.0, 1.0, 2.0, 4.0]
    limited, free = (play(problem, Beam(2, "kl", bits=bits), costs=costs) for bits in (8.0, None))
    assert [request.trials for request in asked(limited)] == [request.trials for request in asked(free)]


@pytest.mark.parametrize(
    ("ends", "stored", "fix"),
    [
        ({"count": 2}, "13.6", "loosen `schedule.count`, or"),
        ({"floor": 0.1}, "16", "loosen `schedule.floor`, or"),
        ({"count": 3, "floor": 2.0}, "13.6", "loosen `schedule.count` or `.floor`, or"),
    ],
)
def test_a_size_that_is_not_reached_is_told(ends: Mapping[str, Any], stored: str, fix: str) -> None:
    found = play(make_problem(4), Beam(1, "kl", bits=9.0, **ends), costs=[1.0, 2.0, 3.0, 4.0])
    _, note = kept(found).notes
    assert note == f"9 bits per weight were not reached: the search ended at {stored}; {fix} use schedule=budget."


def test_every_option_of_every_compressor_is_tried() -> None:
    problem = make_problem(2)
    both = {"int8": problem.offers["int8"], "prune": {name: Offer() for name in problem.offers["int8"]}}
    found = play(replace(problem, offers=both), Beam(3, "kl", amount=0.2), costs=[1.0, 3.0])
    tried = [(name, t.compressor, t.amount) for plan in asked(found)[0].trials for name, t in plan.items()]
    assert tried == [(name, *what) for name in ("layers.0.q", "layers.1.q") for what in (("int8", 0.5), ("prune", 0.2))]
    assert {treatment.compressor for treatment in found.kept.values()} == {"prune"}


@pytest.mark.parametrize(
    ("options", "problem", "message"),
    [
        ({"width": 0}, make_problem(3), "`schedule.width` must be at least 1, got 0; 1 is greedy"),
        ({"count": 4}, make_problem(3), "`schedule.count` must be from 1 to the 3 components, got 4; leave it out"),
        ({"count": 0}, make_problem(3), "`schedule.count` must be at least 1, got 0; leave it out for all"),
        ({"floor": float("nan")}, make_problem(3), "`schedule.floor` must be finite, got nan; give a value"),
        ({"bits": -1.0}, make_problem(3), "`schedule.bits` must be above 0 and at most 64, got -1; give the mean"),
        ({"ranker": "fdt"}, make_problem(3), "unknown metric `fdt` in `schedule.ranker`; did you mean `fdtm`?"),
        ({}, make_problem(3, Offer(), "prune"), "`schedule.amount` must be given, prune offers any amount in [0, 1]; "),
        (
            {"amount": 0.9},
            make_problem(3, Offer(high=0.8), "prune"),
            "`schedule.amount` is 0.9, prune offers any amount in [0, 0.8] for `layers.0.q`; give one",
        ),
        ({"amount": 0.5}, make_problem(3), "`schedule.amount` is for compressors that offer a range, got 0.5 for int8"),
        ({}, Problem([], {"int8": {}}, BETTER, 32), "no component is selected, at least one is needed; loosen"),
        ({}, replace(make_problem(3), offers={}), "schedule `beam` needs a compressor, none is configured; set"),
    ],
)
def test_wrong_options_are_told_in_one_line_before_any_request(
    options: Mapping[str, Any], problem: Problem, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Dialogue(Beam(**options), problem)
    assert str(caught.value).isprintable()


def test_the_defaults_are_the_papers() -> None:
    beam = Beam()
    assert (beam.width, beam.ranker, beam.statistic) == (10, "fdtm", Statistic.p75) and beam.ranks_by() == ("fdtm",)
