"""The default search on models that are made up: exact where costs add up, corrected where they do not."""

import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from compressor.contracts import (
    Better,
    Component,
    Dialogue,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Offer,
    Plan,
    Prefixes,
    Problem,
    Scores,
    SizeRequest,
    Treatment,
    ValuesRequest,
)
from compressor.errors import ConfigError
from compressor.testing.problems import COMPONENTS, OFFERS, DryRun, flat_score, make_problem
from compressor_plugins.schedules.budget.budget import Budget, EstimateBy, Granularity
from compressor_plugins.schedules.budget.round import is_cheaper
from tests.support.budgets import BOTH, PARAMETERS, Crossed, Uneven, play, requests_of
from tests.support.slow import rarely

KL = {"kl": Better.LOWER}
ROWS, MEASURED = Granularity.row, EstimateBy.measured
LEVELS = [index / 20 for index in range(21)]


@dataclass
class Packed(Uneven):
    """`round` stores half a bit per weight for its scales, `prune` saves nothing."""

    def size(self, name: str, option: Treatment | None) -> int:
        chosen = self.kept.get(name) if option is None else option
        component = next(component for component in self.problem.components if component.name == name)
        if chosen is None or chosen.compressor == "prune":
            return component.parameters * component.stored_bits
        return round(component.parameters * (component.stored_bits * (1 - chosen.amount) + 0.5))

    def bits(self, plan: Plan) -> int:
        return sum(self.size(c.name, plan.get(c.name)) for c in self.problem.components)


@dataclass
class Stubborn(Crossed):
    """Measures every further plan as worse, whatever it is."""

    seen: list[Plan] = field(default_factory=list)

    def score_plan(self, plan: Plan, metrics: Sequence[str], prefixes: Prefixes) -> Scores:
        super().score_plan(plan, metrics, prefixes)
        self.seen.append(plan)
        return {name: flat_score(float(len(self.seen))) for name in metrics}


@dataclass
class Noisy(Crossed):
    """Sequences differ by this share of what they cost, each trial's in its own way; their mean stays."""

    noise: float = 0.0
    draws: int = 0

    def spread(self, scores: Scores, sequences: int) -> dict[str, Any]:
        self.draws += 1
        drawn = np.random.default_rng(self.draws).normal(size=self.problem.prefixes)
        factors = 1 + self.noise * (drawn - drawn.mean())
        return {name: values * factors for name, values in super().spread(scores, sequences).items()}


def search_all(rehearsal: Uneven, target: float) -> float:
    """The least harm of any plan that takes the target, amounts of a range on straight lines between levels.

    By dynamic programming over weights that go: best[n] is the least harm with n or more of them gone.
    """
    needed = int(np.ceil(target * PARAMETERS - 1e-9))
    best = np.array([0.0] + [np.inf] * needed)
    for component in rehearsal.problem.components:
        n, harms = component.parameters, np.full(component.parameters + 1, np.inf)
        harms[0] = 0.0
        for compressor, offers in rehearsal.problem.offers.items():
            if offers[component.name].is_range:
                whole = [int(np.ceil(level * n - 1e-9)) for level in LEVELS]
                points = [rehearsal.harm(component.name, compressor, k / n) for k in whole]
                harms = np.minimum(harms, np.interp(np.arange(n + 1), whole, points))
            for level in offers[component.name].levels:
                k = round(level * n)
                harms[k] = min(harms[k], rehearsal.harm(component.name, compressor, level))
        best = np.array([min(best[max(0, gone - k)] + harms[k] for k in range(n + 1)) for gone in range(needed + 1)])
    return float(best[-1])


def read_line(rehearsal: Uneven, name: str, treatment: Treatment) -> float:
    """The harm of a treatment as the search knew it: on straight lines between levels."""
    if treatment.compressor != "prune":
        return rehearsal.harm(name, treatment.compressor, treatment.amount)
    n = next(component.parameters for component in COMPONENTS if component.name == name)
    whole = [np.ceil(level * n - 1e-9) / n for level in LEVELS]
    return float(np.interp(treatment.amount, whole, [rehearsal.harm(name, "prune", amount) for amount in whole]))


@pytest.mark.parametrize("compressors", [("prune",), ("round",), ("prune", "round")])
@pytest.mark.parametrize("target", [64 / 512, 160 / 512, 270 / 512, 351 / 512])
@pytest.mark.parametrize("seed", [0, *rarely([1, 2])])
def test_without_corrections_the_plan_is_the_best_there_is(
    compressors: tuple[str, ...], target: float, seed: int
) -> None:
    rehearsal = play(Budget([target], corrections=0), *compressors, seed=seed)
    (kept,) = requests_of(rehearsal, KeepRequest)
    assert kept.target == target and rehearsal.mean(kept.plan) >= target - 1e-9
    found = sum(read_line(rehearsal, name, treatment) for name, treatment in kept.plan.items())
    assert found == pytest.approx(search_all(rehearsal, target), rel=1e-5)
    if compressors == ("prune",):
        assert rehearsal.mean(kept.plan) <= target + 1 / PARAMETERS


def test_a_mixed_plan_is_mixed_and_has_whole_weights() -> None:
    rehearsal = play(Budget([0.4], corrections=0), "prune", "round", seed=1)
    assert {treatment.compressor for treatment in rehearsal.kept.values()} == {"prune", "round"}
    for component in COMPONENTS:
        gone = rehearsal.kept[component.name].amount * component.parameters
        assert gone == pytest.approx(round(gone), abs=1e-9)


TARGETS = st.lists(st.floats(0.01, 0.75), min_size=1, max_size=3, unique=True).map(sorted)
KINDS = st.sampled_from([("prune",), ("round",), ("prune", "round")])


@settings(deadline=None, max_examples=25)
@given(TARGETS, KINDS, st.integers(0, 99), st.sampled_from([0, 3]))
def test_targets_of_rounds_are_cumulative_and_never_missed(
    targets: list[float], compressors: tuple[str, ...], seed: int, corrections: int
) -> None:
    rehearsal = Crossed(make_problem(compressors, BOTH, seed))
    rehearsal.play(Budget(targets, corrections=corrections))  # which refuses to give back what is kept
    kept: dict[str, Treatment] = {}
    assert [request.target for request in requests_of(rehearsal, KeepRequest)] == targets
    waiting = list(targets)
    for request in rehearsal.requests:
        plans = request.trials if isinstance(request, ValuesRequest) else []
        if isinstance(request, KeepRequest):
            kept |= request.plan
            plans = [{}]
        assert all(rehearsal.mean({**kept, **plan}) >= waiting[0] - 1e-9 for plan in plans)
        waiting = waiting[isinstance(request, KeepRequest) :]


@settings(deadline=None, max_examples=25)
@given(st.floats(4.5, 16.0), st.sampled_from([("round",), ("prune", "round")]), st.integers(0, 99))
def test_packed_bits_are_never_more_than_asked_for(bits: float, compressors: tuple[str, ...], seed: int) -> None:
    rehearsal = Packed(make_problem(compressors, BOTH, seed))
    rehearsal.play(Budget(bits=bits, corrections=3))
    (kept,) = requests_of(rehearsal, KeepRequest)
    scored = [plan for request in requests_of(rehearsal, ValuesRequest) for plan in request.trials]
    assert kept.target is None
    assert all(rehearsal.bits(plan) <= bits * PARAMETERS + 1e-6 for plan in [kept.plan, *scored])


def test_bits_buy_the_best_levels() -> None:
    rehearsal = play(Budget(bits=7, corrections=0), "round", cls=Packed)
    options = [None, *(Treatment("round", level) for level in OFFERS["round"].levels)]
    best = {0: 0.0}
    for component in COMPONENTS:  # the least harm by bits
        longer: dict[int, float] = {}
        for bits, harm in best.items():
            for option in options:
                total = bits + rehearsal.size(component.name, option) if option else bits + component.parameters * 16
                more = harm + (rehearsal.harm(component.name, "round", option.amount) if option else 0.0)
                longer[total] = min(longer.get(total, np.inf), more)
        best = longer
    least = min(harm for bits, harm in best.items() if bits <= 7 * PARAMETERS)
    found = sum(rehearsal.harm(name, "round", treatment.amount) for name, treatment in rehearsal.kept.items())
    assert found == pytest.approx(least, rel=1e-5)
    assert [type(request) for request in rehearsal.requests[:2]] == [SizeRequest, EstimateRequest]


@dataclass
class Headed(Packed):
    """What a pruner saves needs a map of a bit per weight: between two amounts sizes are no straight line."""

    def size(self, name: str, option: Treatment | None) -> int:
        if option is None or option.compressor == "round":
            return super().size(name, option)
        component = next(component for component in self.problem.components if component.name == name)
        kept = round(component.parameters * (1 - option.amount))
        return 16 * kept + component.parameters + 60 * (kept % 2)


@pytest.mark.parametrize("compressors", [("prune",), ("prune", "round")])
@pytest.mark.parametrize("bits", [5.03, 7.77, 9.0])
def test_bits_are_kept_where_sizes_are_no_straight_line(compressors: tuple[str, ...], bits: float) -> None:
    rehearsal = play(Budget(bits=bits, corrections=2), *compressors, cls=Headed)
    (kept,) = requests_of(rehearsal, KeepRequest)
    assert 0.85 * bits * PARAMETERS <= rehearsal.bits(kept.plan) <= bits * PARAMETERS


@pytest.mark.parametrize("size", [1000, 800])
def test_bytes_are_those_of_the_whole_checkpoint(size: int) -> None:
    """512 weights of 2 bytes, and 376 bytes that no treatment changes."""
    rehearsal = play(Budget(bytes=size), "round", cls=Packed, packed=True, fixed_bytes=376)
    bits = rehearsal.bits(rehearsal.kept)
    assert PARAMETERS == 512 and bits / 8 + 376 <= size
    assert size - (bits / 8 + 376) < 160 * (2 + 0.5) / 8 + 1  # less than what one level of the largest would take


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("50%", 700),
        ("100%", 1400),
        ("62.5 %", 875),
        ("66.6%", 932),
        ("1kB", 1000),
        ("1KiB", 1024),
        (".7kb", 700),
        ("0.001MB", 1000),
        ("0.001 MiB", 1048),
        ("1200B", 1200),
    ],
)
def test_a_size_is_a_number_of_bytes(size: str, expected: int) -> None:
    rehearsal, plain = (
        play(Budget(**options), "round", cls=Packed, packed=True, fixed_bytes=376, stored_bytes=1400)
        for options in ({"size": size}, {"bytes": expected})
    )
    assert rehearsal.kept == plain.kept
    assert [request.most_bytes for request in requests_of(rehearsal, KeepRequest)] == [expected]
    assert Budget(size=size).limits_files()


@pytest.mark.parametrize("rows", [False, True])
def test_no_estimate_outlives_its_table(rows: bool) -> None:
    """Estimates of every prefix take as much memory as a model; a long search must not gather them."""
    oracle = Crossed(make_problem(["prune"], BOTH))
    dialogue = Dialogue(Budget([0.5], granularity=ROWS if rows else Granularity.matrix), oracle.problem)
    alive: list[weakref.ref[Estimate]] = []
    asked = 0
    while (request := dialogue.propose()) is not None:
        if isinstance(request, ValuesRequest):
            assert all(estimate() is None for estimate in alive)
            asked += 1
        answer = request.ask(oracle)
        if isinstance(request, EstimateRequest):
            alive += map(weakref.ref, answer.values())
        dialogue.tell(answer)
        del answer
    assert asked >= 2 and len(alive) > len(COMPONENTS)


def plans_of(rehearsal: DryRun) -> list[Plan]:
    return [request.plan for request in requests_of(rehearsal, KeepRequest)]


@pytest.mark.parametrize("compressors", [("prune",), ("round",), ("prune", "round")])
def test_measured_estimates_give_the_same_plan(compressors: tuple[str, ...]) -> None:
    plain, measured, higher = (
        play(Budget([0.55, 0.7], **options), *compressors)
        for options in ({}, {"estimate": MEASURED}, {"estimate": MEASURED, "objective": "fdtm"})
    )
    for rehearsal in (measured, higher):
        assert all(request.measured for request in requests_of(rehearsal, EstimateRequest))
        for plan, expected in zip(plans_of(rehearsal), plans_of(plain), strict=True):
            assert plan.keys() == expected.keys()
            assert [t.amount for t in plan.values()] == pytest.approx([expected[n].amount for n in plan], abs=2e-2)
        assert rehearsal.damage(rehearsal.kept) == pytest.approx(plain.damage(plain.kept), rel=1e-3)


@pytest.mark.parametrize("compressors", [("prune",), ("round",), ("prune", "round")])
@pytest.mark.parametrize("seed", [0, *rarely([1, 2, 3])])
def test_corrections_help_where_components_harm_one_another(compressors: tuple[str, ...], seed: int) -> None:
    before, after = (play(Budget([0.55], corrections=n), *compressors, cls=Crossed, seed=seed) for n in (0, 12))
    assert not requests_of(before, ValuesRequest)
    first, last = before.damage(before.kept), after.damage(after.kept)
    assert last <= first
    if "prune" in compressors:
        assert last < 0.99 * first


@settings(deadline=None, max_examples=12)
@given(KINDS, st.integers(0, 99), st.integers(1, 8))
def test_more_corrections_are_never_worse(compressors: tuple[str, ...], seed: int, corrections: int) -> None:
    fewer, more = (
        play(Budget([0.6], corrections=n), *compressors, cls=Crossed, seed=seed) for n in (corrections - 1, corrections)
    )
    assert more.damage(more.kept) <= fewer.damage(fewer.kept)


@pytest.mark.parametrize("compressors", [("prune",), ("prune", "round")])
def test_what_may_be_chance_is_not_taken(compressors: tuple[str, ...]) -> None:
    """With much noise the first plan is kept, though others measure better; with little they are taken."""
    plans = {}
    for noise in (0.0, 1e-4, 100.0):
        rehearsal = Noisy(make_problem(compressors, BOTH, 0), noise=noise)
        rehearsal.play(Budget([0.55]))
        measured = [plan for r in requests_of(rehearsal, ValuesRequest) for plan in r.trials]
        plans[noise] = (measured[0], plans_of(rehearsal)[0])
        assert min(map(rehearsal.damage, measured)) < rehearsal.damage(measured[0])
    assert plans[100.0][0] == plans[100.0][1]
    assert plans[0.0][0] != plans[0.0][1] == plans[1e-4][1]


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=20), st.integers(-9, 9))
def test_cheaper_is_more_than_a_standard_error(gains: list[int], offset: int) -> None:
    """Of the differences alone: what both plans have in common does not count."""
    others = np.arange(len(gains)) * 7.0 + offset
    mean, error = np.mean(gains), np.std(gains) / (len(gains) - 1) ** 0.5
    if abs(mean - error) > 1e-9:
        assert is_cheaper(others - gains, others) == (mean > error)
    assert is_cheaper(np.array([1.0]), np.array([2.0])) and not is_cheaper(others, others)


def test_what_is_kept_is_the_best_that_was_measured() -> None:
    rehearsal = play(Budget([0.6]), cls=Crossed)
    measured = [rehearsal.damage(plan) for r in requests_of(rehearsal, ValuesRequest) for plan in r.trials]
    assert rehearsal.damage(rehearsal.kept) == min(measured) and len(measured) > 2


def test_a_correction_moves_no_amount_farther_than_ten_points() -> None:
    rehearsal = play(Budget([0.6]), cls=Crossed)
    first, alike, *others = (plan for r in requests_of(rehearsal, ValuesRequest) for plan in r.trials)
    assert is_alike(alike)
    farthest = [max(abs(others[0][name].amount - plan[name].amount) for name in plan) for plan in (first, alike)]
    assert min(farthest) <= 0.1 + 1 / 32, "corrections start from the better of the two"
    rounded = play(Budget([0.6]), "round", cls=Crossed, seed=3)
    first, alike, *others = (plan for r in requests_of(rounded, ValuesRequest) for plan in r.trials)
    assert is_alike(alike)
    steps = [0.0, *OFFERS["round"].levels]
    for component in COMPONENTS:
        now, then = (plan[component.name].amount if component.name in plan else 0.0 for plan in (first, others[0]))
        assert abs(steps.index(then) - steps.index(now)) <= 1


@pytest.mark.parametrize("compressors", [("prune",), ("prune", "round")])
def test_a_correction_that_is_refused_is_made_smaller_without_asking_again(compressors: tuple[str, ...]) -> None:
    """Of the trust region all, a half, a quarter, an eighth, a sixteenth; then no more."""
    rehearsal = play(Budget([0.6], corrections=20), *compressors, cls=Stubborn)
    assert len(requests_of(rehearsal, EstimateRequest)) == 2
    first, *others = rehearsal.seen
    assert plans_of(rehearsal) == [first] and first not in others
    if compressors == ("prune",):
        alike, *others = others
        assert is_alike(alike) and len(others) == 5
        moved = [max(abs(plan[name].amount - first[name].amount) for name in first) for plan in others]
        assert moved == sorted(moved, reverse=True) and moved[-1] <= 0.1 / 16 + 1 / 32
    few = play(Budget([0.6], corrections=2), *compressors, cls=Stubborn)
    assert few.seen == rehearsal.seen[: 3 + is_alike(rehearsal.seen[1])]


def is_alike(plan: Plan) -> bool:
    """Are all components treated by the same, and by amounts that are equal but for whole weights?"""
    amounts = [treatment.amount for treatment in plan.values()]
    is_one = len({treatment.compressor for treatment in plan.values()}) == 1
    return len(plan) == len(COMPONENTS) and is_one and max(amounts) - min(amounts) < 1 / 32


@dataclass
class Misleading(Uneven):
    """Estimates that are right of single components, where treating them differently is what harms."""

    def damage(self, plan: Plan) -> float:
        return super().damage(plan) if is_alike(plan) or len(plan) <= 1 else 100.0 + super().damage(plan)


@pytest.mark.parametrize("target", [0.55, 0.6, 0.7])
def test_a_budget_starts_with_all_components_alike_where_that_measures_better(target: float) -> None:
    """By the cheapest fixed option that fits; without corrections nothing is measured, and it is not found."""
    (plan,) = plans_of(play(Budget([target]), "round", cls=Misleading))
    assert is_alike(plan)
    level = min(level for level in OFFERS["round"].levels if level >= target)
    assert next(iter(plan.values())).amount == level
    (plan,) = plans_of(play(Budget([target], corrections=0), "round", cls=Misleading))
    assert not is_alike(plan)


@dataclass
class Unsure(Uneven):
    """The first `sure` sequences say something else of each component than the others do."""

    unsure: int = 0

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        answer = super().estimate(request)
        start, stop = request.start, self.problem.prefixes if request.stop is None else request.stop
        for index, (name, estimate) in enumerate(answer.items()):
            early = np.arange(start, stop) < self.unsure
            estimate.changes[early] *= 4.0 ** (index % 2)
            answer[name] = estimate
        return answer


def ranges_of(rehearsal: DryRun) -> list[tuple[int, int]]:
    return [(request.start, request.stop) for request in requests_of(rehearsal, EstimateRequest)]


def test_prefixes_double_until_the_plan_settles() -> None:
    def ranges(prefixes: int, unsure: int) -> list[tuple[int, int]]:
        rehearsal = Unsure(replace(make_problem(["prune"], KL), prefixes=prefixes), unsure=unsure)
        rehearsal.play(Budget([0.5], corrections=0))
        return ranges_of(rehearsal)

    assert ranges(8, 0) == [(0, 8)]
    assert ranges(32, 0) == [(0, 32)]
    assert ranges(4000, 0) == [(0, 32), (32, 64)]
    assert ranges(200, 32) == [(0, 32), (32, 64), (64, 128), (128, 200)]


def test_corrections_estimate_on_the_prefixes_on_which_the_plan_settled() -> None:
    rehearsal = play(Budget([0.6], corrections=1), cls=Crossed, prefixes=4000)
    assert ranges_of(rehearsal) == [(0, 32), (32, 64), (0, 64)]
    assert all(request.stop is None for request in requests_of(rehearsal, ValuesRequest))


@dataclass
class RowByRow(DryRun):
    """damage = Σ_c Σ_r h_cr a_cr² / Σ h, and estimates say it row by row."""

    def hardness_of(self, name: str) -> Any:  # noqa: ANN401 - an array
        component = next(component for component in COMPONENTS if component.name == name)
        return component.shape[1] * (1.0 + np.arange(component.shape[0]))

    def harms(self, name: str, treatment: Treatment) -> Any:  # noqa: ANN401 - an array
        rows = treatment.rows or (treatment.amount,) * len(self.hardness_of(name))
        total = sum(self.hardness_of(component.name).sum() for component in COMPONENTS)
        return self.hardness_of(name) * np.array(rows) ** 2 / total

    def damage(self, plan: Plan) -> float:
        return float(sum(self.harms(name, treatment).sum() for name, treatment in plan.items()))

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        answer, before = super().estimate(request), {**self.kept, **request.at}
        for name, options in request.options.items() if request.by_row else ():
            now = self.harms(name, before[name]) if name in before else 0.0
            rows = np.stack([self.harms(name, option) - now for option in options], axis=1)
            answer[name] = replace(answer[name], rows=rows)
        return answer


@pytest.mark.parametrize("corrections", [0, 4])
def test_rows_have_amounts_of_their_own(corrections: int) -> None:
    rehearsal = play(Budget([0.3, 0.35], granularity=ROWS, corrections=corrections), cls=RowByRow)
    assert all(request.by_row for request in requests_of(rehearsal, EstimateRequest))
    for kept, target in zip(plans_of(rehearsal), (0.3, 0.35), strict=True):
        gone = 0.0
        for component in COMPONENTS:
            treatment, width = kept[component.name], component.shape[1]
            assert len(treatment.rows) == component.shape[0]
            assert sum(treatment.rows) / len(treatment.rows) == pytest.approx(treatment.amount)
            whole = np.array(treatment.rows) * width
            assert whole == pytest.approx(np.round(whole), abs=1e-9)
            assert list(treatment.rows) == sorted(treatment.rows, reverse=True)  # later rows are harder
            gone += whole.sum()
        assert target * PARAMETERS - 1e-9 <= gone <= target * PARAMETERS + 1
    first, second = plans_of(rehearsal)
    assert all(b >= a for c in COMPONENTS for a, b in zip(first[c.name].rows, second[c.name].rows, strict=True))
    by_matrix = play(Budget([0.3, 0.35]), cls=RowByRow)
    assert rehearsal.damage(rehearsal.kept) < 0.9 * by_matrix.damage(by_matrix.kept)


def test_rows_are_asked_about_until_they_settle_too() -> None:
    """Two rows that change places leave the amount of their matrix as it is; the plan has not settled."""

    class Swapping(RowByRow):
        def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
            answer = super().estimate(request)
            if request.start == 0:
                return {n: replace(e, rows=np.asarray(e.rows)[::-1]) for n, e in answer.items()}
            return {n: replace(e, rows=50 * np.asarray(e.rows)) for n, e in answer.items()}

    rehearsal = play(Budget([0.4], granularity=ROWS, corrections=0), cls=Swapping, prefixes=128)
    assert ranges_of(rehearsal) == [(0, 32), (32, 64), (64, 128)]


@dataclass
class Silent(Crossed):
    """No token comes to some components: to `never`, or only to `later` once there is a plan on the model."""

    never: tuple[str, ...] = (COMPONENTS[2].name,)
    later: tuple[str, ...] = ()

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        silent = {*self.never, *(self.later if request.at else ())}
        return {
            name: replace(found, changes=0 * found.changes, reached=False) if name in silent else found
            for name, found in super().estimate(request).items()
        }


@pytest.mark.parametrize("compressors", [("prune",), ("round",), ("prune", "round")])
@pytest.mark.parametrize("estimate", EstimateBy)
def test_components_that_were_not_reached_stay_and_are_noted(
    compressors: tuple[str, ...], estimate: EstimateBy
) -> None:
    rehearsal = play(Budget([0.4], estimate=estimate), *compressors, cls=Silent)
    (kept,) = requests_of(rehearsal, KeepRequest)
    name = COMPONENTS[2].name
    assert name not in kept.plan and rehearsal.mean(kept.plan) >= 0.4 - 1e-9
    text = f"Unchanged stay 1 of 6 components ({name}), which none of the 256 tokens after 8 prefixes reached; their"
    assert kept.notes[0].startswith(text)
    assert all(name not in plan for request in requests_of(rehearsal, ValuesRequest) for plan in request.trials)


@pytest.mark.parametrize("compressors", [("prune",), ("round",), ("prune", "round")])
def test_components_that_a_plan_cuts_off_keep_what_the_plan_says(compressors: tuple[str, ...]) -> None:
    problem, name = make_problem(compressors, KL), COMPONENTS[1].name
    rehearsal = Silent(problem, never=(), later=(name,))
    rehearsal.play(Budget([0.55]))
    asked = [plan for request in requests_of(rehearsal, ValuesRequest) for plan in request.trials]
    start, plans = asked[:2], asked[2:] if is_alike(asked[1]) else asked[1:]
    assert plans and repr(plans[0].get(name)) in {repr(plan.get(name)) for plan in start}
    assert len({repr(plan.get(name)) for plan in plans}) == 1
    assert rehearsal.mean(rehearsal.kept) >= 0.55 - 1e-9


@pytest.mark.parametrize("compressors", [("prune",), ("round",)])
def test_a_budget_that_needs_what_was_not_reached_is_refused_before_anything_is_scored(
    compressors: tuple[str, ...],
) -> None:
    rehearsal = Silent(make_problem(compressors, KL))
    most = {"prune": "0.6875", "round": "0.5156"}[compressors[0]]
    reason = re.escape(
        f"out of reach, the most is {most}; lower `schedule.targets` or add a compressor that takes more"
    )
    with pytest.raises(ConfigError, match=rf"of 0.7 is {reason} \(Unchanged stay 1 of 6 .* will hardly help"):
        rehearsal.play(Budget([0.7]))
    assert not requests_of(rehearsal, ValuesRequest)


def test_a_budget_of_which_nothing_can_be_taken_says_so() -> None:
    rehearsal = Silent(make_problem(["prune"], KL), never=tuple(component.name for component in COMPONENTS))
    with pytest.raises(
        ConfigError, match=r"of 0.5 is out of reach, nothing can be taken; lower .* \(Unchanged stay 6 "
    ):
        rehearsal.play(Budget([0.5]))


def test_nothing_reached_keeps_nothing() -> None:
    rehearsal = Silent(make_problem(["round"], KL), never=tuple(component.name for component in COMPONENTS))
    rehearsal.play(Budget(bits=16.0))
    assert rehearsal.kept == {}
    (kept,) = requests_of(rehearsal, KeepRequest)
    names = ", ".join(component.name for component in COMPONENTS[:3])
    assert f"Unchanged stay 6 of 6 components ({names} …), which none of the" in kept.notes[0]


def test_what_stays_unspent_is_noted() -> None:
    (kept,) = requests_of(play(Budget([0.72]), "round"), KeepRequest)
    kept_weights = sum(c.parameters * (1 - kept.plan[c.name].amount) for c in COMPONENTS)
    share = 1 - kept_weights / (0.28 * PARAMETERS)
    assert share > 0.002
    text = f"{share:.1%} of the budget is left over: no option that fits into it improves the plan."
    assert kept.notes == (text,)
    assert requests_of(play(Budget([0.5])), KeepRequest)[0].notes == ()


def test_everything_can_be_taken() -> None:
    (kept,) = requests_of(play(Budget([1.0])), KeepRequest)
    assert {treatment.amount for treatment in kept.plan.values()} == {1.0} and kept.notes == ()


@pytest.mark.parametrize(("compressor", "target"), [("prune", 0.5), ("round", 0.5), ("little", 0.3)])
def test_without_targets_it_takes_half_or_what_there_is(compressor: str, target: float) -> None:
    offers = {"little": {component.name: Offer(high=0.3) for component in COMPONENTS}}
    problem = make_problem([compressor], KL) if compressor in OFFERS else replace(make_problem([], KL), offers=offers)
    rehearsal = DryRun(problem)
    rehearsal.play(Budget())
    assert requests_of(rehearsal, KeepRequest)[0].target == pytest.approx(target)


def test_amounts_stay_in_what_is_offered() -> None:
    """And where an offer ends between two weights, at its end."""
    offers = {c.name: Offer(low=0.12, high=0.63) for c in COMPONENTS}
    problem = replace(
        make_problem([], KL), offers={"some": offers, "round": make_problem(["round"], KL).offers["round"]}
    )
    for chosen in (problem, replace(problem, offers={"some": offers})):
        rehearsal = Crossed(chosen)
        rehearsal.play(Budget([0.2, 0.6]))  # which refuses what is not offered
        assert rehearsal.mean(rehearsal.kept) >= 0.6 - 1e-9


def test_a_plan_is_plain_python() -> None:
    for granularity in Granularity:
        rehearsal = play(Budget([0.3], granularity=granularity))
        for treatment in rehearsal.kept.values():
            assert all(type(amount) is float for amount in (treatment.amount, *(treatment.rows or ())))


def test_options_come_from_a_command_line() -> None:
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Budget), {"size": "50%"})) == Budget(size="50%")
    given = {"targets": [0.2, 1], "estimate": "measured", "granularity": "row", "objective": "fdtm", "bits": 4}
    built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Budget), given))
    assert built == Budget([0.2, 1.0], 4.0, None, "fdtm", MEASURED, 6, ROWS)
    assert Budget(objective="fdtm").ranks_by() == ("fdtm",)


PRUNE, ROUND, MIXED = (make_problem(names, BOTH) for names in (("prune",), ("round",), ("prune", "round")))
BASE = replace(ROUND, packed=True, fixed_bytes=376, stored_bytes=1000)
WRONG: list[tuple[Mapping[str, Any], Problem, str]] = [
    ({"objective": "klx"}, PRUNE, "unknown metric `klx` in `schedule.objective`; did you mean `kl`?"),
    (
        {"objective": "fdtm"},
        PRUNE,
        "`schedule.objective=fdtm` cannot be estimated by one pass, kl can; choose one of these, or "
        "use schedule.estimate=measured",
    ),
    (
        {"objective": "fdtm"},
        replace(PRUNE, estimable=frozenset()),
        "cannot be estimated by one pass, none of those configured can; choose",
    ),
    (
        {"targets": [0.5], "bits": 4.0},
        ROUND,
        "at most one of `schedule.targets`, `.bits`, `.bytes` and `.size` may be given, got targets and bits; drop the "
        "others",
    ),
    ({"bytes": 9, "size": "50%"}, ROUND, "may be given, got bytes and size; drop the others"),
    ({"bytes": 9, "bits": 4.0}, ROUND, "may be given, got bits and bytes; drop the others"),
    (
        {"bits": 0.0},
        ROUND,
        "`schedule.bits` must be above 0 and at most 64, got 0; give the mean bits of a weight, such as 4.5",
    ),
    ({"bits": -2.0}, ROUND, "`schedule.bits` must be above 0 and at most 64, got -2; give"),
    ({"bits": float("nan")}, ROUND, "`schedule.bits` must be above 0 and at most 64, got nan; give"),
    ({"bits": float("inf")}, ROUND, "`schedule.bits` must be above 0 and at most 64, got inf; give"),
    (
        {"bytes": 700},
        ROUND,
        "`schedule.bytes` needs an export that packs weights, and it can pack no component of this model; set "
        "export.format=auto and install 'compressor[export]', or use schedule.bits or schedule.targets",
    ),
    ({"bytes": 0}, replace(ROUND, packed=True), "`schedule.bytes` must be above 0, got 0; give the size of the wei"),
    (
        {"size": "50%"},
        ROUND,
        "`schedule.size` needs an export that packs weights, and it can pack no component of this model; set",
    ),
    *(
        ({"size": size}, BASE, f"`schedule.size` must be {rule}, got {size!r}; {fix}")
        for size, rule, fix in (
            (
                "50",
                "a percentage or a number of bytes with a unit",
                "give a percentage of the base's weight files, such as 50%, or",
            ),
            ("half", "a percentage or a number of bytes with a unit", "give"),
            ("", "a percentage or a number of bytes with a unit", "give"),
            ("-5%", "a percentage or a number of bytes with a unit", "give"),
            ("3 Mbit", "a percentage or a number of bytes with a unit", "give"),
            ("1e3MB", "a percentage or a number of bytes with a unit", "give"),
            ("0%", "above 0% and at most 100%", "for example 50%"),
            ("101%", "above 0% and at most 100%", "for example 50%"),
            ("0.1B", "at least one byte", "give"),
            ("0MB", "at least one byte", "give"),
            ("9" * 400 + "MB", "at least one byte", "give"),
        )
    ),
    (
        {"targets": [0.6, 0.8]},
        ROUND,
        "the budget of a mean amount of 0.8 is out of reach, the most is 0.75; lower `schedule.targets` or add a "
        "compressor that takes more",
    ),
    ({"targets": [0.5, 0.4]}, PRUNE, "`schedule.targets` must increase, got 0.4 after 0.5; they are cumulative"),
    ({"targets": [1.5]}, PRUNE, "`schedule.targets` must be in (0, 1], got 1.5; give the share"),
    ({"corrections": -1}, PRUNE, "`schedule.corrections` must not be negative, got -1; 0 makes none"),
    (
        {"granularity": ROWS},
        MIXED,
        "`schedule.granularity=row` needs one compressor that takes amounts per row, got prune, round; use "
        "compressor=magnitude, or granularity=matrix",
    ),
    ({"granularity": ROWS}, ROUND, "needs one compressor that takes amounts per row, got round; use"),
    (
        {"granularity": ROWS},
        replace(PRUNE, offers={"even": {c.name: Offer(levels=(0.5,), by_row=True) for c in COMPONENTS}}),
        "needs one compressor that takes amounts per row, got even; use",
    ),
    (
        {"granularity": ROWS, "bits": 4.0},
        PRUNE,
        "`schedule.granularity=row` needs estimate=one_pass and `schedule.targets`, got estimate=one_pass, "
        "bits=4.0; drop these",
    ),
    ({"granularity": ROWS, "size": "50%"}, PRUNE, "got estimate=one_pass, size=50%; drop these"),
    ({"granularity": ROWS, "estimate": MEASURED}, PRUNE, "`schedule.targets`, got estimate=measured; drop these"),
    ({}, replace(PRUNE, components=[], offers={"prune": {}}), "no component is selected, at least one is needed; loo"),
    ({}, replace(PRUNE, offers={}), "schedule `budget` needs a compressor, none is configured; set `compressor`"),
]


@pytest.mark.parametrize(("options", "problem", "message"), WRONG)
def test_wrong_options_are_told_in_one_line_before_any_request(
    options: Mapping[str, Any], problem: Problem, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Dialogue(Budget(**options), problem)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("scale", [1, 7])
def test_budgets_below_the_smallest_name_what_is_enough(scale: int) -> None:
    """4.5 bits are the least that `round` stores here; odd sizes, so that the figure is no round one."""
    sizes: Sequence[tuple[int, int]] = [(8 * scale, 3), (1, 33), (5, 5)]
    components = [Component(f"layers.{i}.q", "query", i, shape, 16) for i, shape in enumerate(sizes)]
    offers = {"round": {component.name: OFFERS["round"] for component in components}}
    problem = Problem(components, offers, KL, 32, 0, frozenset(KL), 8, fixed_bytes=100, packed=True)
    for option, pattern in (("bits", r"smallest is ([0-9.]+) bits; raise `schedule.bits`"), ("bytes", r"is (\d+) byt")):
        rehearsal = Packed(problem)
        with pytest.raises(ConfigError, match=rf"the budget of .* {option} is out of reach, the .*{pattern}") as caught:
            rehearsal.play(Budget(**{option: 4.0 if option == "bits" else 99}))
        assert [type(request) for request in rehearsal.requests] == [SizeRequest]
        found = re.search(pattern, str(caught.value))
        assert found is not None
        nearest = {"bits": float, "bytes": int}[option](found[1])
        Packed(problem).play(Budget(**{option: nearest}))
        with pytest.raises(ConfigError, match="out of reach"):
            Packed(problem).play(Budget(**{option: nearest - (1e-4 if option == "bits" else 1)}))


def test_a_percentage_below_the_smallest_names_what_is_enough() -> None:
    problem = replace(ROUND, packed=True, fixed_bytes=376, stored_bytes=1400)
    rehearsal = Packed(problem)
    with pytest.raises(ConfigError) as caught:
        rehearsal.play(Budget(size="30%"))
    assert [type(request) for request in rehearsal.requests] == [SizeRequest]
    assert str(caught.value) == (
        "the budget of `schedule.size=30%` (420 bytes) is out of reach, the smallest is 664 bytes, 47.5% of the "
        "base; raise `schedule.size` or add a compressor that takes more"
    )
    Packed(problem).play(Budget(size="47.5%"))
