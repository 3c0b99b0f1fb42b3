"""The rival search: budgets are kept exactly, stages select, the parent is only replaced by what is no worse."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from compressor.commands.early_checks import list_unused_options
from compressor.contracts import (
    Better,
    Component,
    Dialogue,
    KeepRequest,
    Offer,
    Plan,
    Problem,
    ScoreRequest,
    Scores,
    SizeRequest,
    Treatment,
)
from compressor.errors import ConfigError, PluginError
from compressor.testing.problems import DryRun, flat_score, make_problem
from compressor_plugins.schedules.evolution.evolution import Evolution
from compressor_plugins.schedules.evolution.fixed_levels import FixedLevels, make_ladder
from compressor_plugins.schedules.evolution.mutations import State, add_uniformly, make_steps
from compressor_plugins.schedules.evolution.presets import Preset, choose_effort
from compressor_plugins.schedules.targets import Span

KL = {"kl": Better.LOWER}
WIDTHS = Offer(levels=tuple(1 - bits / 16 for bits in (2, 3, 4, 6, 8)))
QUICK: dict[str, Any] = {"generations": 6, "offspring": 5, "survivors": [3, 1, 1], "tokens": [32, 64, 4096]}


@dataclass
class Scaled(DryRun):
    """Packed bits with scales: half a bit per weight on top."""

    def size(self, name: str, treatment: Treatment) -> int:
        component = next(component for component in self.problem.components if component.name == name)
        return round(component.parameters * (component.stored_bits * (1 - treatment.amount) + 0.5))

    def bits(self, plan: Plan) -> int:
        return sum(self.size(name, treatment) for name, treatment in plan.items())


@dataclass
class Noted(DryRun):
    """Scores by the number of prefixes: what few of them say is noise."""

    drawn: dict[tuple[str, int | None], float] = field(default_factory=dict)

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        return tuple(self.score_noisily(plan, request) for plan in request.trials)

    def score_noisily(self, plan: Plan, request: ScoreRequest) -> Scores:
        exact = self.score_plan(plan, request.metrics, request.prefixes)
        if request.stop == self.problem.prefixes:
            return exact
        noise = np.random.default_rng([len(self.drawn), request.stop or 0]).normal()
        value = self.drawn.setdefault((repr(plan), request.stop), float(noise))
        return {"kl": flat_score(value)}


def problem_of(sizes: Sequence[int], offer: Offer, seed: int = 0, *compressors: str) -> Problem:
    components = [Component(f"layers.{index}.q", "query", index, (1, size), 16) for index, size in enumerate(sizes)]
    offers = {component.name: offer for component in components}
    return Problem(components, dict.fromkeys(compressors or ("prune",), offers), KL, 32, seed, prefixes=8)


def play(problem: Problem, schedule: Evolution, cls: type[DryRun] = DryRun) -> Any:  # noqa: ANN401 - `cls`
    rehearsal = cls(problem)
    rehearsal.play(schedule, most=10_000)
    return rehearsal


def trials_of(rehearsal: DryRun) -> list[Plan]:
    return [t for request in rehearsal.requests if isinstance(request, ScoreRequest) for t in request.trials]


def kept_by(rehearsal: DryRun) -> list[KeepRequest]:
    return [request for request in rehearsal.requests if isinstance(request, KeepRequest)]


def mean_of(problem: Problem, plan: Plan) -> float:
    total = sum(component.parameters for component in problem.components)
    return sum(c.parameters * plan[c.name].amount for c in problem.components) / total


SIZES = st.lists(st.integers(1, 100_000), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=40)
@given(SIZES, SEEDS, st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3, unique=True), st.floats(0.01, 1.0))
def test_every_plan_has_the_mean_amount_of_its_target(
    sizes: list[int], seed: int, targets: list[float], step: float
) -> None:
    problem = problem_of(sizes, Offer(), seed)
    rehearsal = play(problem, Evolution(sorted(targets), step=step, **QUICK))
    assert [request.target for request in kept_by(rehearsal)] == sorted(targets)
    waiting = sorted(targets)
    for request in rehearsal.requests:
        plans = request.trials if isinstance(request, ScoreRequest) else [request.plan]
        assert all(mean_of(problem, plan) == pytest.approx(waiting[0], abs=1e-9) for plan in plans)
        waiting = waiting[isinstance(request, KeepRequest) :]


def test_a_step_is_the_same_number_of_weights_in_every_component() -> None:
    problem = problem_of([1000, 4000, 500, 1000], Offer())
    rehearsal = play(problem, Evolution([0.5], step=1 / 16, **QUICK))
    step = 31  # 1000 · 0.5 / 16 = 31.25
    for plan in trials_of(rehearsal):
        moved = [(plan[c.name].amount - 0.5) * c.parameters / step for c in problem.components]
        assert moved == pytest.approx(np.round(moved), abs=1e-9) and abs(sum(moved)) < 1e-9
    assert {round(abs(p["layers.1.q"].amount - 0.5) * 4000 / step) for p in trials_of(rehearsal)} > {0, 1}


def test_a_step_without_effect_is_named() -> None:
    wide, fixed = problem_of([80], Offer()), problem_of([80], Offer(levels=(0.25, 0.5)))
    assert not list(list_unused_options(Evolution(step=0.25), wide))
    assert not list(list_unused_options(Evolution(), fixed))
    said = "`schedule.step` has no effect with fixed levels; leave it out"
    assert list(list_unused_options(Evolution(step=0.25), fixed)) == [said]


@pytest.mark.parametrize("found", [None, ["step"], {"lost": "fixed levels"}, {"step": 5}])
def test_options_without_effect_are_options(found: Any) -> None:  # noqa: ANN401
    class Odd(Evolution):
        def list_unused(self, problem: Problem) -> Any:  # noqa: ANN401
            return found

    with pytest.raises(PluginError, match=r"`list_unused\(\)` of schedule `evolution` .*give a mapping of its options"):
        list(list_unused_options(Odd(), problem_of([80], Offer())))


def test_levels_end_where_the_offer_or_what_is_kept_does() -> None:
    sizes, low, high = np.array([100.0, 10.0]), np.array([0.2, 0.2]), np.array([0.9, 0.9])
    span = Span("prune", ("a", "b"), sizes, low, high)
    steps = make_steps(span, np.zeros(2), 0.5, share=0.1)  # room 0.3 · median 55 · 0.1 = 1.65, so 2 weights
    assert (steps.step, steps.lowest.tolist(), steps.highest.tolist()) == (2, [-15, -1], [20, 2])
    later = make_steps(span, np.array([0.5, 0.3]), 0.6, share=0.1)
    assert later.start == pytest.approx([0.5 + 13 / 110, 0.3 + 13 / 110]) and later.step == 1
    assert (later.lowest.tolist(), later.highest.tolist()) == ([-11, -1], [28, 4])


def test_what_is_added_is_the_same_for_all_within_bounds() -> None:
    span = Span("prune", ("a", "b", "c"), np.full(3, 10.0), np.array([0.3, 0.0, 0.0]), np.array([1.0, 1.0, 0.15]))
    assert add_uniformly(span, np.zeros(3), 0.2) == pytest.approx([0.3, 0.15, 0.15])
    assert add_uniformly(span, np.zeros(3), 0.25) == pytest.approx([0.3, 0.3, 0.15])
    assert add_uniformly(span, np.array([0.4, 0.1, 0.0]), 0.4) == pytest.approx([0.675, 0.375, 0.15])
    assert add_uniformly(span, np.array([0.4, 0.4, 0.0]), 0.1) == pytest.approx([0.4, 0.4, 0.0])


@pytest.mark.parametrize("better", Better)
def test_comes_close_to_the_known_optimum(better: Better) -> None:
    """min Σ_c h_c a_c² at Σ_c w_c a_c = t Σ_c w_c with h_c = m_c w_c has a_c ∝ 1 / m_c."""
    problem = make_problem(["prune"], {"kl": better})
    rehearsal = play(problem, Evolution([0.4], step=1 / 16, generations=250))
    weights = np.array([component.parameters for component in problem.components])
    hard = np.array([1 + index % 3 for index in range(len(weights))])
    amounts = 0.4 * weights.sum() / (weights / hard).sum() / hard
    assert amounts.max() < 1
    optimum = float((hard * weights) @ amounts**2 / (hard * weights).sum())
    assert optimum - 1e-12 <= rehearsal.damage(rehearsal.kept) <= 1.01 * optimum
    assert 1.01 * optimum < 0.85 * 0.4**2


def test_the_default_gains_much_of_what_there_is_to_gain() -> None:
    rehearsal = play(make_problem(["prune"], KL), Evolution())
    assert [request.target for request in kept_by(rehearsal)] == [0.5]
    assert rehearsal.damage(rehearsal.kept) < 0.85 * 0.5**2


@settings(deadline=None, max_examples=40)
@given(SEEDS, SIZES, st.integers(1, 8), st.sampled_from([Offer(), WIDTHS]))
def test_never_worse_than_uniform_whatever_few_prefixes_say(
    seed: int, sizes: list[int], generations: int, offer: Offer
) -> None:
    problem = problem_of(sizes, offer, seed)
    options = QUICK | {"generations": generations}
    rehearsal = play(problem, Evolution([0.75], **options), Noted)
    assert rehearsal.damage(rehearsal.kept) <= 0.75**2 + 1e-12


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_more_generations_go_on_where_fewer_stopped(seed: int) -> None:
    problem = problem_of([100, 300, 200, 100], Offer(), seed)
    short, long = (play(problem, Evolution([0.5], **QUICK | {"generations": n}), Noted) for n in (4, 8))
    assert long.requests[: len(short.requests) - 1] == short.requests[:-1]
    assert long.damage(long.kept) <= short.damage(short.kept)


def read_stages(requests: Sequence[object]) -> list[tuple[int, int | None]]:
    return [(len(request.trials), request.stop) for request in requests if isinstance(request, ScoreRequest)]


def test_stages_score_fewer_on_more_prefixes() -> None:
    options: dict[str, Any] = {"survivors": [6, 2, 1], "tokens": [33, 100, 200], "offspring": 12, "generations": 4}
    rehearsal = play(make_problem(["prune"], KL), Evolution([0.5], step=0.1, **options))
    assert read_stages(rehearsal.requests)[:3] == [(12, 2), (6, 4), (3, 7)]
    again = read_stages(rehearsal.requests)[3:]  # the parent is known by now; so may be offspring that came before
    assert len(again) == 9 and all(count <= most for (count, _), most in zip(again, [12, 6, 2] * 3, strict=True))
    clipped = play(make_problem(["prune"], KL), Evolution([0.5], step=0.1, **options | {"tokens": [1, 255, 10**6]}))
    assert read_stages(clipped.requests)[:3] == [(12, 1), (6, 8), (1, 8)]  # the last has only the parent to score


def tell(dialogue: Dialogue, values: Sequence[float]) -> Sequence[Plan]:
    """Answer the open request; the trials of the next, or the plan that is kept."""
    dialogue.tell([{"kl": flat_score(value)} for value in values])
    request = dialogue.propose()
    if isinstance(request, ScoreRequest):
        return request.trials
    assert isinstance(request, KeepRequest) and request.target == 0.5
    return [request.plan]


def test_the_best_of_a_stage_go_on_and_the_parent_joins_last() -> None:
    schedule = Evolution([0.5], survivors=[2, 1], tokens=[32, 256], offspring=4, generations=2, step=0.1)
    dialogue = Dialogue(schedule, make_problem(["prune"], KL))
    request = dialogue.propose()
    assert isinstance(request, ScoreRequest) and request.metrics == ("kl",)
    first = request.trials
    uniform = {name: Treatment("prune", 0.5) for name in first[0]}
    second = tell(dialogue, (0.3, math.nan, 0.1, 0.2))
    assert list(second) == [first[2], first[3], uniform] and uniform not in first
    third = tell(dialogue, (0.3, 0.2, 0.25))
    fourth = tell(dialogue, range(len(third)))
    assert len(third) == 4 and len(fourth) == 2
    assert first[3] not in [*third, *fourth]  # the parent by now, whose score is remembered
    assert tell(dialogue, (9.0, math.nan)) == [first[3]]


def test_a_stage_that_would_drop_nobody_scores_nobody() -> None:
    schedule = Evolution([0.5], offspring=3, step=0.1, generations=2)
    rehearsal = play(make_problem(["prune"], KL), replace(schedule, survivors=[3, 2, 1], tokens=[32, 64, 128]))
    assert read_stages(rehearsal.requests)[0] == (3, 2)


@settings(deadline=None, max_examples=30)
@given(SEEDS, SIZES, st.sampled_from([Offer(), WIDTHS]))
def test_no_plan_is_scored_twice_on_the_same_prefixes(seed: int, sizes: list[int], offer: Offer) -> None:
    rehearsal = play(problem_of(sizes, offer, seed), Evolution([0.7], **QUICK), Noted)
    asked = [(repr(plan), r.stop) for r in rehearsal.requests if isinstance(r, ScoreRequest) for plan in r.trials]
    assert len(set(asked)) == len(asked)


def test_randomness_is_the_seed_alone() -> None:
    runs = [play(problem_of([100, 300, 200], Offer(), seed), Evolution([0.5], **QUICK)) for seed in (1, 1, 2)]
    assert runs[0].requests == runs[1].requests != runs[2].requests


def test_nothing_is_scored_where_nothing_can_be_switched() -> None:
    for problem, target in ((problem_of([10], Offer()), 0.5), (problem_of([10, 20], Offer(high=0.4)), 0.4)):
        assert [type(request) for request in play(problem, Evolution([target])).requests] == [KeepRequest]


@settings(deadline=None, max_examples=40)
@given(SIZES, SEEDS, st.floats(2.5, 9.0))
def test_packed_bits_are_never_more_than_asked_for(sizes: list[int], seed: int, bits: float) -> None:
    problem = problem_of([8 * size for size in sizes], WIDTHS, seed, "rtn")
    rehearsal = play(problem, Evolution(bits=bits, **QUICK), Scaled)
    (kept,) = kept_by(rehearsal)
    budget = bits * sum(component.parameters for component in problem.components)
    assert kept.target is None
    assert all(rehearsal.bits(plan) <= budget for plan in [*trials_of(rehearsal), kept.plan])
    assert sum(isinstance(request, SizeRequest) for request in rehearsal.requests) == 1


def test_the_first_parent_is_the_common_level_filled_up() -> None:
    problem = problem_of([1000] * 8, WIDTHS, 0, "rtn")
    rehearsal = play(problem, Evolution(bits=3.75, **QUICK, step=1.0), Scaled)
    last = next(r for r in rehearsal.requests if isinstance(r, ScoreRequest) and len(r.trials) == 2)
    widths = sorted(round(16 * (1 - treatment.amount)) for treatment in last.trials[-1].values())
    assert widths == [3] * 6 + [4] * 2  # 3.5 bits with scales, and a quarter more: two of eight take one bit more


def levels_of(sizes: Sequence[int], bits: int) -> FixedLevels:
    """Components with levels of 8, 6, 4, 3, 2 bits, a budget of `bits` each."""
    options = {str(index): [Treatment("rtn", level) for level in WIDTHS.levels] for index in range(len(sizes))}
    packed = {str(index): [size * width for width in (2, 3, 4, 6, 8)] for index, size in enumerate(sizes)}
    ladder = make_ladder(options, packed)
    return FixedLevels(np.zeros(len(sizes), dtype=np.int64), ladder.tops, ladder, sum(sizes) * bits)


def test_a_switch_that_gives_too_little_for_what_it_takes_does_not_work_out() -> None:
    """Two more bits for 1 weight are not worth one less for 10; the other way round they are given back."""
    space, rng = levels_of([1, 10], 4), np.random.default_rng(0)
    found = {space.switch((2, 2), 1, rng) for _ in range(300)}
    assert found == {None, (2, 2), (3, 2), (4, 2)}


def test_a_switch_of_levels_makes_at_most_ten_changes() -> None:
    """Two more bits of a component are paid for by one bit each of eight or ten others: nine changes, or eleven."""
    for size, reached in ((4, {1, 2}), (5, {2})):
        space, rng = levels_of([size, *[1] * 200], 4), np.random.default_rng(0)
        start = space.uniform(rng)
        assert start == (2,) * 201
        children = [child for _ in range(3000) if (child := space.switch(start, 1, rng)) is not None]
        assert {child[0] for child in children} == reached
        assert all(space.cost(np.array(child)).sum() <= space.budget for child in children)


@dataclass(frozen=True)
class Counted(FixedLevels):
    """Notes how many flips are asked for."""

    flips: list[int] = field(default_factory=list)

    def switch(self, state: State, flips: int, rng: np.random.Generator) -> State | None:
        self.flips.append(flips)
        return (len(self.flips),)


def test_flips_are_the_smaller_of_two_draws() -> None:
    plain = levels_of([1], 4)
    space = Counted(plain.lowest, plain.highest, plain.ladder, plain.budget)
    assert len(space.breed((0,), 9000, np.random.default_rng(0))) == 9000
    assert [space.flips.count(flips) / 1000 for flips in (1, 2, 3)] == pytest.approx([5, 3, 1], abs=0.3)


def test_levels_find_the_soft_components() -> None:
    """Six components of 1, 2, 3, 1, 2, 3 times the hardness per weight; the budget is that of the middle level."""
    problem = make_problem(["round"], KL)
    rehearsal = play(problem, Evolution([0.625]))
    before = rehearsal.damage({c.name: Treatment("round", 0.625) for c in problem.components})
    assert rehearsal.damage(rehearsal.kept) < before
    assert mean_of(problem, rehearsal.kept) >= 0.625 - 1e-12
    assert all(mean_of(problem, plan) >= 0.625 - 1e-12 for plan in trials_of(rehearsal))


def test_fixed_levels_take_the_middle_without_a_target() -> None:
    (kept,) = kept_by(play(make_problem(["round"], KL), Evolution()))
    assert kept.target == pytest.approx(0.625)


@settings(deadline=None, max_examples=30)
@given(SIZES, SEEDS, st.lists(st.floats(0.5, 0.875), min_size=1, max_size=3, unique=True))
def test_rounds_of_fixed_levels_take_at_least_their_targets(sizes: list[int], seed: int, targets: list[float]) -> None:
    problem = problem_of([8 * size for size in sizes], WIDTHS, seed, "rtn")
    rehearsal = play(problem, Evolution(sorted(targets), **QUICK), Scaled)  # which refuses to give back what is kept
    for request in kept_by(rehearsal):
        assert mean_of(problem, request.plan) >= (request.target or 0.0) - 1e-6


def test_a_switch_is_between_compressors_of_one_level_too() -> None:
    problem = problem_of([800, 1600, 800, 3200], Offer(levels=(0.5,)), 0, "int8", "int4")
    offers = {"int8": problem.offers["int8"], "int4": dict.fromkeys(problem.offers["int8"], Offer(levels=(0.75,)))}
    rehearsal = play(replace(problem, offers=offers), Evolution(bits=6.5, **QUICK), Scaled)
    (kept,) = kept_by(rehearsal)
    assert {treatment.compressor for treatment in kept.plan.values()} == {"int8", "int4"}
    assert rehearsal.bits(kept.plan) <= 6.5 * 6400


def test_a_ladder_leaves_out_what_stores_more_and_takes_less() -> None:
    options = [Treatment("a", 0.5), Treatment("b", 0.75), Treatment("c", 0.6)]
    ladder = make_ladder({"x": options, "y": options[:1]}, {"x": [80, 40, 30], "y": [8]})
    assert ladder.options == ((options[0], options[1]), (options[0],))
    assert ladder.bits.tolist() == [[80, 40], [8, 8]]
    assert ladder.interpolate(np.array([0.5, 0.5])) == 88 and ladder.interpolate(np.array([0.625, 0.5])) == 68


def test_published_figures_are_one_option() -> None:
    problem = replace(problem_of([10], Offer()), tokens=64, prefixes=4096)
    prune, quantize = (choose_effort(Preset.published, quantizes) for quantizes in (False, True))
    assert (prune.generations, prune.offspring) == (400, 64)
    assert prune.stages(problem) == [(8, 32), (2, 256), (1, 1024)]
    assert (quantize.generations, quantize.offspring) == (150, 128)
    assert quantize.stages(problem) == [(16, 32), (4, 256), (1, 2048)]
    small = choose_effort(Preset.small, False)
    stages = small.stages(replace(problem, prefixes=64))
    trials = [small.offspring, *(survivors for survivors, _ in stages)]
    passes = small.generations * sum(n * first / 64 for n, (_, first) in zip(trials, stages, strict=False))
    assert passes == 220
    given = OmegaConf.merge(OmegaConf.structured(Evolution), {"preset": "published", "offspring": 8, "bits": 3})
    assert OmegaConf.to_object(given) == Evolution(bits=3.0, preset=Preset.published, offspring=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generations": 0}, "`schedule.generations` must be at least 1, got 0; leave it out"),
        ({"offspring": -1}, "`schedule.offspring` must be at least 1, got -1; leave it out"),
        ({"offspring": 10_001}, "`schedule.offspring` must be at most 10,000, because all of a generation are drawn"),
        ({"step": 0.0}, "`schedule.step` must be in (0, 1], got 0; leave"),
        ({"step": math.nan}, "`schedule.step` must be in (0, 1], got nan; leave"),
        ({"survivors": [2, 1]}, "need a number for each stage, got [2, 1] and [256, 1024, 4096]; give two lists"),
        ({"survivors": [3, 2], "tokens": [1, 2]}, "`schedule.survivors` must end in 1, the next parent, got [3, 2]; "),
        ({"survivors": [1, 4, 1]}, "`schedule.survivors` must not increase, got [1, 4, 1]; give [4, 1, 1]"),
        ({"tokens": [64, 32, 128]}, "`schedule.tokens` must be positive and not decrease, got [64, 32, 128]; "),
        ({"tokens": [0, 32, 128]}, "`schedule.tokens` must be positive and not decrease, got [0, 32, 128]; "),
        ({"objective": "klx"}, "unknown metric `klx` in `schedule.objective`; did you mean `kl`?"),
        ({"bits": 3.0}, "`schedule.bits` needs fixed levels, prune offers a range; give `schedule.targets`"),
        ({"targets": [0.9]}, "`schedule.targets` has 0.9, prune offers [0, 0.8] over all components"),
        ({"targets": [0.5, 0.4]}, "must increase, got 0.4 after 0.5"),
    ],
)
def test_wrong_options_are_told_in_one_line_before_any_request(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Dialogue(Evolution(**options), problem_of([10, 20], Offer(high=0.8)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 4.0, "targets": [0.6]}, "`schedule.bits` excludes `schedule.targets`, got [0.6] too; drop one"),
        ({"bits": 0.0}, "`schedule.bits` must be above 0 and at most 64, got 0; give the mean"),
        ({"bits": math.inf}, "`schedule.bits` must be above 0 and at most 64, got inf; give the mean"),
        ({"targets": [0.3]}, "`schedule.targets` has 0.3, rtn offers [0.5, 0.875] over all components"),
        ({"bits": 2.4}, "`schedule.bits` is 2.4 per weight, rtn stores at least 2.5, scales counted; give that"),
    ],
)
def test_wrong_budgets_of_fixed_levels(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        play(problem_of([80, 160], WIDTHS, 0, "rtn"), Evolution(**options), Scaled)
    assert str(caught.value).isprintable()


def test_a_range_and_levels_do_not_mix() -> None:
    with pytest.raises(ConfigError, match="takes one compressor, configured are prune, round"):
        Dialogue(Evolution(), make_problem(["prune", "round"], KL))
    assert Evolution(objective="fdtm").ranks_by() == ("fdtm",)
