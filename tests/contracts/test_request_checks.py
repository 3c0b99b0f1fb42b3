"""A request that no oracle could answer is refused in one line, before anything is asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from compressor.contracts import (
    BestRequest,
    Better,
    CountRequest,
    Dialogue,
    EstimateRequest,
    KeepRequest,
    Prefixes,
    Problem,
    Schedule,
    ScoreRequest,
    Search,
    SizeRequest,
    Treatment,
    ValuesRequest,
    Waypoint,
)
from compressor.contracts.request_checks import RequestChecks
from compressor.errors import PluginError
from compressor.search.fused_components import open_dialogue
from compressor.testing.problems import COMPONENTS, DryRun, make_problem

NAME = COMPONENTS[0].name
HALF = Treatment("round", 0.5)
PLAN = {NAME: HALF}
ROWS = Treatment("prune", 0.5, rows=(0.5,) * 8)
KL, BOTH = ("kl",), {"kl": Better.LOWER, "fdtm": Better.HIGHER}


def options(*choices: object, name: str = NAME) -> Any:  # noqa: ANN401 - right or wrong ones
    return {name: list(choices)}


def bend(treatment: Treatment, **fields: object) -> Treatment:
    """A treatment whose own checks did not see the fields."""
    bent = Treatment(treatment.compressor, treatment.amount, treatment.options, treatment.rows)
    for name, value in fields.items():
        object.__setattr__(bent, name, value)
    return bent


TRIALS: dict[str, tuple[Any, str]] = {
    "no trial": ([], "`trials` []; give a sequence of at least one plan"),
    "trials are a generator": ((plan for plan in [PLAN]), "give a sequence of at least one plan"),
    "trials are a plan": (PLAN, "give a sequence of at least one plan"),
    "trials are a text": ("kl", "`trials` 'kl'; give a sequence of at least one plan"),
    "no mapping": ([{}, [HALF]], "`trials[1]` [Treatment(compressor='round', amount=0.5, "),
    "unknown component": ([{NAME[:-1]: HALF}], f"it is no component of the problem; did you mean `{NAME}`"),
    "component of another type": ([{5: HALF}], "`trials` 5; it is no component"),
    "no treatment": ([{NAME: 0.5}], f"`trials[{NAME}]` 0.5; give a Treatment"),
    "nothing": ([{NAME: None}], f"`trials[{NAME}]` None; give a Treatment"),
    "unknown component, no treatment": ([{"x": None}], "`trials` 'x'; it is no component"),
    "unknown compressor": ([{NAME: Treatment("rond", 0.5)}], "its compressor is not offered; did you mean `round`?"),
    "amount not offered": ([{NAME: Treatment("round", 0.6)}], "offered: the amounts 0.5, 0.625, 0.75"),
    "amount of NaN": ([{NAME: bend(HALF, amount=math.nan)}], "offered: the amounts"),
    "amount of numpy": ([{NAME: bend(HALF, amount=np.float32(0.5))}], "its amounts must be of type float"),
    "compressor of another type": ([{NAME: bend(HALF, compressor=["round"])}], "its `compressor` must be a name"),
    "options of another type": ([{NAME: bend(HALF, options=5)}], "its `options` must be a mapping"),
    "rows of another type": ([{NAME: bend(ROWS, rows=[0.5] * 8)}], "its `rows` must be a tuple, or None"),
    "rows not offered": ([{NAME: Treatment("round", 0.5, rows=(0.5,) * 8)}], "takes one amount per matrix"),
    "too few rows": ([{NAME: Treatment("prune", 0.5, rows=(0.5,) * 7)}], "8 output rows, got 7 amounts"),
}  # fmt: skip
RANGES: dict[str, tuple[dict[str, Any], str]] = {
    "start beyond": ({"start": 8}, "`start` 8; it must be in [0, 8)"),
    "start negative": ({"start": -1}, "`start` -1; it must be in [0, 8)"),
    "start of another type": ({"start": 1.0}, "`start` 1.0"),
    "empty": ({"start": 3, "stop": 3}, "`stop` 3; it must be in [4, 8], or None for all"),
    "stop before start": ({"start": 3, "stop": 2}, "`stop` 2"),
    "stop beyond": ({"stop": 9}, "`stop` 9; it must be in [1, 8]"),
    "stop of another type": ({"stop": True}, "`stop` True"),
}  # fmt: skip


def score(**fields: Any) -> ScoreRequest:  # noqa: ANN401
    return ScoreRequest(**{"trials": [PLAN], "metrics": KL, **fields})


def best(**fields: Any) -> BestRequest:  # noqa: ANN401
    return BestRequest(**{"trials": [{}, PLAN], "metric": "kl", "count": 1, **fields})


def estimate(**fields: Any) -> EstimateRequest:  # noqa: ANN401
    return EstimateRequest(**{"options": options(None, HALF), "objective": "kl", **fields})


def keep(**fields: Any) -> KeepRequest:  # noqa: ANN401
    return KeepRequest(**{"plan": PLAN, **fields})


REQUESTS: dict[str, tuple[Any, str]] = {
    **{f"score: {name}": (score(trials=trials), message) for name, (trials, message) in TRIALS.items()},
    **{f"score: {name}": (score(**fields), message) for name, (fields, message) in RANGES.items()},
    **{f"estimate: {name}": (estimate(**fields), message) for name, (fields, message) in RANGES.items()},
    "values: no trial": (ValuesRequest([], KL), "made a ValuesRequest that has `trials` []"),
    "score: unknown metric": (score(metrics=("kl", "sdtm")), "`metrics` 'sdtm'; no such metric is configured; did"),
    "score: no metric": (score(metrics=()), "`metrics` (); give a sequence of names"),
    "score: metrics are a text": (score(metrics="kl"), "`metrics` 'kl'; give a sequence of names"),
    "score: metric of another type": (score(metrics=[["kl"]]), "`metrics` ['kl']; no such metric"),
    "score: prefixes of another type": (score(prefixes="search"), "`prefixes` 'search'; give Prefixes.SEARCH or"),
    "score: beyond the proof": (score(prefixes=Prefixes.PROOF, stop=6), "`stop` 6; it must be in [1, 5]"),
    "best: unknown metric": (best(metric="sdtm"), "`metric` 'sdtm'; no such metric"),
    "best: count of 0": (best(count=0), "`count` 0; it must be at least 1; ask for one"),
    "best: count of another type": (best(count=1.5), "`count` 1.5; it must be at least 1"),
    "best: unknown statistic": (best(statistic="p90"), "`statistic` 'p90'; it must be one of mean, min, p25, median, "),
    "best: bounds": (best(bounds=[1.0]), "`bounds` [1.0]; there must be one for each of 2 trials, or none"),
    "best: bound of another type": (best(bounds=[None, "1"]), "`bounds` '1'; a bound is a number, or None"),
    "best: no trial": (best(trials=()), "`trials` ()"),
    "estimate: cannot be estimated": (estimate(objective="fdtm"), "only kl can be estimated; set `measured`"),
    "estimate: unknown": (estimate(objective="sdtm", measured=True), "`objective` 'sdtm'; no such metric"),
    "estimate: nothing": (estimate(options={}), "`options` {}; give a mapping"),
    "estimate: no option": (estimate(options=options()), f"`options[{NAME}]` []; give a sequence of at least one"),
    "estimate: options are one": (estimate(options={NAME: HALF}), "give a sequence of at least one option"),
    "estimate: by row": (estimate(by_row=1), "`by_row` 1; it must be True or False"),
    "estimate: at": (estimate(at={"x": HALF}), "`at` 'x'; it is no component"),
    "size: unknown component": (SizeRequest(options(HALF, name="x")), "`options` 'x'; it is no component"),
    "size: unknown, no treatment": (SizeRequest(options(None, name="x")), "`options` 'x'; it is no component"),
    "size: not offered": (SizeRequest(options(Treatment("round", 0.6))), "offered: the amounts"),
    "size: on disk": (SizeRequest(options(HALF), on_disk="no"), "`on_disk` 'no'"),
    "count: unknown compressor": (CountRequest("prone", (0.1,)), "no such compressor is configured; did you mean"),
    "count: unsorted": (CountRequest("prune", (0.5, 0.1)), "they must increase; give sorted thresholds"),
    "count: NaN": (CountRequest("prune", (0.5, math.nan)), "a sequence of numbers, none of them NaN"),
    "count: no threshold": (CountRequest("prune", ()), "`thresholds` ()"),
    "keep: unknown component": (keep(plan={"lm_head": HALF}), "`plan` 'lm_head'; it is no component"),
    "keep: no plan": (keep(plan=None), "`plan` None; a plan is a mapping"),
    "keep: target": (keep(target=1.5), "`target` 1.5; a mean amount in [0, 1] or None"),
    "keep: target of NaN": (keep(target=math.nan), "`target` nan"),
    "keep: note": (keep(notes="a sentence"), "`notes` 'a sentence'; give a sequence of sentences"),
    "keep: notes": (keep(notes=[5]), "`notes` [5]"),
    "keep: curve": (keep(curve=None), "`curve` None; give a sequence of Waypoints"),
    "keep: curve of plans": (keep(curve=[PLAN]), "`curve[0]` {"),
    "keep: waypoint's plan": (keep(curve=[Waypoint({"x": HALF}, "kl", 1.0)]), "`curve[0].plan` 'x'"),
    "keep: waypoint's metric": (keep(curve=[Waypoint(PLAN, "x", 1.0)]), "`curve[0].metric` 'x'"),
    "keep: waypoint's value": (keep(curve=[Waypoint(PLAN, "kl", math.nan)]), "`curve[0].value` nan; a finite number"),
    "keep: waypoint's statistic": (keep(curve=[Waypoint(PLAN, "kl", 1.0, "p90")]), "`curve[0].statistic` 'p90'"),
    "keep: bytes": (keep(most_bytes=-1), "`most_bytes` -1; a whole number of bytes or None"),
    "keep: singles": (keep(singles={"x": 1.0}), "`singles` 'x'; no such metric"),
    "keep: singles of infinity": (keep(singles={"kl": math.inf}), "`singles[kl]` inf; a finite number"),
    "keep: singles are a list": (keep(singles=[1.0]), "`singles` [1.0]; give a mapping"),
    "keep: last": (keep(last="yes"), "`last` 'yes'; it must be True or False"),
    "no request": (PLAN, "which is not a request; yield one of compressor.contracts"),
    "a class": (KeepRequest, "which is not a request"),
}  # fmt: skip
"""A request, and what is said of it."""


class Asks(Schedule):
    """Yields what it is given, whatever the answers are."""

    name: ClassVar[str] = "asks"

    def __init__(self, *requests: object) -> None:
        self.requests = requests

    def search(self, problem: Problem) -> Search:
        yield from self.requests  # type: ignore[misc]


def problem() -> Problem:
    made = make_problem(["prune", "round"], BOTH)
    return Problem(**{**vars(made), "proof_prefixes": 5})


@pytest.mark.parametrize("case", REQUESTS)
def test_a_wrong_request_is_one_line_at_once(case: str) -> None:
    request, message = REQUESTS[case]
    with pytest.raises(PluginError) as caught:
        Dialogue(Asks(request), problem())
    said = str(caught.value)
    assert said.startswith(f"schedule `asks` of {__name__}.Asks ") and message in said, said
    assert said.isprintable()


@pytest.mark.parametrize(
    "request_",
    [
        score(), score(trials=({}, PLAN), start=7, stop=8), score(prefixes=Prefixes.PROOF, stop=5),
        best(bounds=[None, 1]), best(count=9), estimate(), estimate(objective="fdtm", measured=True, by_row=True),
        SizeRequest(options(None, ROWS)),
        CountRequest("prune", (-math.inf, 0.0, 0.0, np.float64(1.0))), keep(), KeepRequest({}, last=True),
        keep(target=0.5, notes=["So."], curve=[Waypoint(PLAN, "kl", 1.0)], most_bytes=5, singles={"kl": 1.0}),
        score(trials=[{NAME: Treatment("round", 0.6, {"bits": 6})}]),
    ],
)  # fmt: skip
def test_right_requests_pass(request_: Any) -> None:  # noqa: ANN401
    assert Dialogue(Asks(request_), problem()).propose() is request_


def test_later_requests_are_checked_and_none_follows_the_last() -> None:
    dialogue = Dialogue(Asks(keep(), score(), keep(last=True), score()), problem())
    for _ in range(2):
        dialogue.tell(None)
    with pytest.raises(PluginError, match="made a ScoreRequest that comes after a KeepRequest with `last`; set"):
        dialogue.tell(None)


def test_a_schedule_that_repeats_may_use_what_is_not_offered() -> None:
    class Repeats(Asks):
        repeats: ClassVar[bool] = True

    plan = {NAME: Treatment("another", 0.1)}
    assert Dialogue(Repeats(KeepRequest(plan)), problem()).propose() == KeepRequest(plan)
    with pytest.raises(PluginError, match="it is no component"):
        Dialogue(Repeats(KeepRequest({"x": HALF})), problem())


@pytest.mark.parametrize("fuses", [False, True])
def test_fused_components_are_checked_by_the_names_that_the_schedule_knows(fuses: bool) -> None:
    unit, member = "model.layers.0.self_attn.qkv", NAME
    known, unknown = (unit, member) if fuses else (member, unit)
    oracle = DryRun(problem())
    open_dialogue(Asks(KeepRequest({known: HALF})), problem(), oracle, fuses)
    with pytest.raises(PluginError, match="it is no component of the problem"):
        open_dialogue(Asks(KeepRequest({unknown: HALF})), problem(), oracle, fuses)


@pytest.mark.parametrize("found", [None, [score()], 5])
def test_a_search_that_is_no_generator_is_refused(found: object) -> None:
    class Returns(Asks):
        def search(self, problem: Problem) -> Search:
            return found  # type: ignore[return-value]

    with pytest.raises(PluginError, match=r"^`search` of schedule `asks` of .*, which is no generator"):
        next(iter([Dialogue(Returns(), problem())]))


class Hostile(str):
    """A text whose methods fail."""

    def __str__(self) -> str:
        raise TypeError("hostile")

    __repr__ = __format__ = __hash__ = __eq__ = __str__  # type: ignore[assignment]


@pytest.mark.parametrize("value", [Hostile("kl"), [Hostile("kl")]])
def test_a_value_whose_methods_fail_is_one_line(value: object) -> None:
    for request in (best(metric=value), score(metrics=value), estimate(objective=value), keep(singles={"kl": value})):
        with pytest.raises(PluginError, match=r"^schedule `asks` of "):
            Dialogue(Asks(request), problem())


def test_a_value_that_cannot_be_shown_is_one_line() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    with pytest.raises(PluginError, match="`target` of type Odd; a mean amount"):
        Dialogue(Asks(keep(target=Odd())), problem())
    with pytest.raises(PluginError) as caught:
        Dialogue(Asks(score(trials="x" * 10**6)), problem())
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("is_shared", [True, False])
def test_checks_of_many_trials_take_no_time(is_shared: bool) -> None:
    """Thousands of trials of a thousand components, whose treatments are shared; or each is made anew."""
    trials, components = (5000, 1000) if is_shared else (100, 1000)
    many = [type(COMPONENTS[0])(f"layers.{index}.q", "query", index, (8, 8), 16) for index in range(components)]
    offers = {component.name: make_problem(["round"], {}).offers["round"][NAME] for component in many}
    make: Callable[[], Treatment] = (lambda: HALF) if is_shared else (lambda: Treatment("round", 0.5))
    plan = {component.name: make() for component in many}
    plans = [plan if is_shared else {name: make() for name in plan} for _ in range(trials)]
    checks = RequestChecks("schedule `asks`", Problem(many, {"round": offers}, {"kl": Better.LOWER}, 8))
    began = time.process_time()
    checks.check(ScoreRequest(plans, KL))
    per_treatment = (time.process_time() - began) / (trials * components)
    assert per_treatment < (1e-6 if is_shared else 2e-5)
