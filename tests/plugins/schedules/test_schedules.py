"""What all schedules share: targets and offers, errors in one line, options, and replay from the answers so far."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from compressor.artifacts.plan_file import plan_to_json
from compressor.contracts import (
    Better,
    Component,
    CountRequest,
    Dialogue,
    KeepRequest,
    Offer,
    Problem,
    Request,
    Schedule,
    Score,
    ScoreRequest,
    Search,
    Treatment,
)
from compressor.errors import ConfigError, PlanError, PluginError
from compressor.plugins import load_plugins
from compressor.testing.problems import make_problem as make_small_problem
from compressor_plugins.schedules.fdt_allocation import FdtAllocation
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.plan import ReplayedPlan
from compressor_plugins.schedules.targets import Statistic
from compressor_plugins.schedules.uniform import Uniform

SIZES = {"layers.0.q": 1000, "layers.0.k": 500, "layers.1.q": 1000}
RANGE, INT8 = Offer(), Offer(levels=(0.5,))
SEARCHES: dict[str, Schedule] = {
    "uniform": Uniform([0.2, 0.5]),
    "global": GlobalThreshold([0.2, 0.5]),
    "fdt_allocation": FdtAllocation([0.2, 0.5]),
}


def make_problem(*compressors: str, offer: Offer = RANGE, **special: Offer) -> Problem:
    """Three components; `special` gives those of layer 0 and 1 by the keys q0, k0, q1 another offer."""
    components = [Component(name, name[-1:], int(name[7]), (1, size), 16) for name, size in SIZES.items()]
    offers = {name: special.get(f"{name[-1]}{name[7]}", offer) for name in SIZES}
    return Problem(components, dict.fromkeys(compressors, offers), {"fdtm": Better.HIGHER, "kl": Better.LOWER}, 50)


def answer(request: Request) -> object:
    """Some model: component i bears its amount to the power of i + 1; importances are even in [0, 1]."""
    match request:
        case ScoreRequest():
            order = {name: index + 1 for index, name in enumerate(SIZES)}
            values = [50 - sum(50 * t.amount ** order[c] for c, t in plan.items()) for plan in request.trials]
            return tuple({m: Score(*[value] * 10, n=4) for m in request.metrics} for value in values)
        case CountRequest():
            shares = [min(max(threshold, 0.0), 1.0) for threshold in request.thresholds]
            return {name: [round(share * size) for share in shares] for name, size in SIZES.items()}
        case KeepRequest():
            return {name: request.plan[name].amount if name in request.plan else 0.0 for name in SIZES}


def run(schedule: Schedule, problem: Problem) -> tuple[list[Request], list[Any]]:
    requests, answers, dialogue = [], [], Dialogue(schedule, problem)
    while (request := dialogue.propose()) is not None:
        requests.append(request)
        answers.append(answer(request))
        dialogue.tell(answers[-1])
    return requests, answers


def kept(schedule: Schedule, problem: Problem) -> list[KeepRequest]:
    return [request for request in run(schedule, problem)[0] if isinstance(request, KeepRequest)]


def test_uniform_gives_every_component_the_target() -> None:
    requests, _ = run(Uniform([0.2, 0.5]), make_problem("magnitude"))
    assert requests == [KeepRequest(dict.fromkeys(SIZES, Treatment("magnitude", x)), x) for x in (0.2, 0.5)]


@pytest.mark.parametrize(
    ("problem", "amount"),
    [
        (make_problem("magnitude"), 0.5),
        (make_problem("magnitude", q0=Offer(high=0.4)), 0.4),
        (make_problem("magnitude", k0=Offer(low=0.6)), 0.6),
        (make_problem("int8", offer=INT8), 0.5),
        (make_problem("rtn", offer=Offer(levels=(0.5, 0.75, 0.8125)), q1=Offer(levels=(0.75, 0.5))), 0.75),
    ],
)
def test_uniform_without_targets(problem: Problem, amount: float) -> None:
    (request,) = kept(Uniform(), problem)
    assert request.target == amount and {t.amount for t in request.plan.values()} == {amount}


@pytest.mark.parametrize("schedule", [GlobalThreshold(), FdtAllocation()])
def test_searches_without_targets_take_half_or_what_there_is(schedule: Schedule) -> None:
    assert [request.target for request in kept(schedule, make_problem("magnitude"))] == [0.5]
    tight = make_problem("magnitude", offer=Offer(high=0.3), q0=Offer(high=0.4))
    assert [request.target for request in kept(schedule, tight)] == [pytest.approx(0.34)]


@pytest.mark.parametrize("name", SEARCHES)
def test_answers_so_far_are_the_state(name: str) -> None:
    problem = make_problem("magnitude")
    requests, answers = run(SEARCHES[name], problem)
    for done in range(len(answers) + 1):
        resumed = Dialogue(SEARCHES[name], problem, answers[:done])
        assert resumed.propose() == (requests[done] if done < len(requests) else None)


@pytest.mark.parametrize("name", SEARCHES)
def test_plans_are_plain_python(name: str) -> None:
    for request in kept(SEARCHES[name], make_problem("magnitude")):
        assert all(type(treatment.amount) is float and not treatment.options for treatment in request.plan.values())
        json.dumps(plan_to_json(request.plan))


ALL = tuple(SEARCHES)
RANGED = ("global", "fdt_allocation")
SETTINGS: list[tuple[Sequence[str], Mapping[str, Any], Problem, str]] = [
    (ALL, {"targets": [0.0]}, make_problem("magnitude"), "`schedule.targets` must be in (0, 1], got 0; give"),
    (ALL, {"targets": [0.2, 1.5]}, make_problem("magnitude"), "`schedule.targets` must be in (0, 1], got 1.5; give"),
    (
        ALL,
        {"targets": [float("nan")]},
        make_problem("magnitude"),
        "`schedule.targets` must be in (0, 1], got nan; give",
    ),
    (ALL, {"targets": [0.5, 0.5]}, make_problem("magnitude"), "must increase, got 0.5 after 0.5; they are cumulative"),
    (ALL, {"targets": [0.5, 0.2]}, make_problem("magnitude"), "must increase, got 0.2 after 0.5; they are cumulative"),
    (ALL, {}, make_problem("magnitude", "int8"), "takes one compressor, configured are magnitude, int8; choose one"),
    (ALL, {}, make_problem(), "needs a compressor, none is configured; set `compressor`"),
    (ALL, {}, Problem([], {"magnitude": {}}, {}, 50), "no component is selected, at least one is needed; loosen"),
    (
        RANGED,
        {},
        make_problem("int8", offer=INT8),
        "needs a range of amounts, int8 offers the amounts 0.5 for `layers.0.q`",
    ),
    (
        RANGED,
        {"targets": [0.9]},
        make_problem("wanda", offer=Offer(high=0.8)),
        "`schedule.targets` has 0.9, wanda offers [0, 0.8] over",
    ),
    (
        RANGED,
        {"targets": [0.1]},
        make_problem("wanda", offer=Offer(low=0.2)),
        "`schedule.targets` has 0.1, wanda offers [0.2, 1] over",
    ),
    (
        ("uniform",),
        {"targets": [0.6]},
        make_problem("int8", offer=INT8),
        "`schedule.targets` has 0.6, int8 offers the amounts 0.5 for `layers.0.q`; cho",
    ),
    (
        ("uniform",),
        {"targets": [0.6]},
        make_problem("w", k0=Offer(high=0.4)),
        "w offers any amount in [0, 0.4] for `layers.0.k`; choose an amount",
    ),
    (
        ("uniform",),
        {},
        make_problem("int8", offer=INT8, q0=Offer(levels=(0.75,))),
        "that all components share (0.5, 0.75)",
    ),
]


@pytest.mark.parametrize(
    ("name", "options", "problem", "message"), [(name, *rest) for names, *rest in SETTINGS for name in names]
)
def test_wrong_settings_are_told_in_one_line_before_any_request(
    name: str, options: Mapping[str, Any], problem: Problem, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Dialogue(type(SEARCHES[name])(**options), problem)
    assert str(caught.value).isprintable()


@pytest.fixture
def write_plan(tmp_path: Path) -> Callable[[Mapping[str, Treatment]], ReplayedPlan]:
    """A schedule that replays the given plan from a file."""

    def write(plan: Mapping[str, Treatment]) -> ReplayedPlan:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(plan_to_json(plan)), encoding="utf-8")
        return ReplayedPlan(str(path))

    return write


WritePlan = Callable[[Mapping[str, Treatment]], ReplayedPlan]


def test_a_plan_is_kept_as_it_is_written(write_plan: WritePlan) -> None:
    plan = {"layers.0.k": Treatment("int8", 0.5), "layers.1.q": Treatment("rtn", 0.875, {"bits": [2.0], "seed": 3})}
    requests, _ = run(write_plan(plan), make_problem("int8", "rtn", offer=INT8))
    assert requests == [KeepRequest(plan)]


def test_a_plan_may_use_an_installed_compressor_that_is_not_configured(write_plan: WritePlan) -> None:
    for name in load_plugins().compressors:
        plan = {"layers.0.k": Treatment(name, 0.5)}
        assert run(write_plan(plan), make_problem("other"))[0] == [KeepRequest(plan)]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"layers.0.kk": Treatment("int8", 0.5)},
            "treats 'layers.0.kk', which is not a component of this model; did you",
        ),
        ({"x\ny": Treatment("int8", 0.5)}, r"treats 'x\ny', which is not a component of this model; known: layers.0.k"),
        (
            {"layers.0.q": Treatment("no_such", 0.5)},
            "treats `layers.0.q` by a compressor that is not installed: unknown compressor `no_such`",
        ),
        (
            {"layers.0.q": Treatment("int8", 0.6)},
            "the plan has amount 0.6 for `layers.0.q`, int8 offers the amounts 0.5; cha",
        ),
    ],
)
def test_a_plan_that_does_not_fit(plan: Mapping[str, Treatment], message: str, write_plan: WritePlan) -> None:
    with pytest.raises(PlanError, match=re.escape(message)) as caught:
        Dialogue(write_plan(plan), make_problem("int8", offer=INT8))
    assert str(caught.value).isprintable()


def test_a_plan_needs_a_path() -> None:
    with pytest.raises(ConfigError, match=r"^`schedule.path` must be a plan.json, got nothing; give schedule.path="):
        Dialogue(ReplayedPlan(), make_problem("int8"))
    with pytest.raises(PlanError, match=r"^plan 'missing.json' cannot be read"):
        Dialogue(ReplayedPlan("missing.json"), make_problem("int8"))


def test_every_schedule_is_registered_and_is_a_config() -> None:
    schedules = load_plugins().schedules
    assert {"uniform", "global", "fdt_allocation", "plan"} <= set(schedules)
    for cls in schedules.values():
        assert OmegaConf.to_object(OmegaConf.structured(cls)) == cls()  # type: ignore[call-arg]
        assert (cls.__doc__ or "").strip() and not str(cls.__doc__).startswith(f"{cls.__name__}(")


def test_options_come_from_a_command_line() -> None:
    given = {"targets": [0.2, 1], "ranker": "kl", "statistic": "p75"}
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(FdtAllocation), given)) == FdtAllocation(
        [0.2, 1.0], "kl", Statistic.p75
    )


@pytest.mark.parametrize("wrong", [None, 5])
def test_what_is_not_a_request_is_refused(wrong: object) -> None:
    @dataclass
    class Wrong(Uniform):
        def search(self, problem: Problem) -> Search:
            yield wrong  # type: ignore[misc]

    with pytest.raises(
        PluginError, match=f"^schedule `uniform` of .*Wrong yielded {wrong}, which is not a request; yield one of"
    ):
        Dialogue(Wrong(), make_small_problem(["prune"], {"kl": Better.LOWER}))
