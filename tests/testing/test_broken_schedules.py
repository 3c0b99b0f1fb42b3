"""The contract suite of schedules notices every broken promise."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from compressor.contracts import CountRequest, KeepRequest, Prefixes, Problem, Schedule, ScoreRequest, Search, Treatment
from compressor.errors import PluginError
from compressor.testing import ScheduleContract


@dataclass
class Halve(Schedule):
    """An honest schedule to break: keeps half of everything."""

    name: ClassVar[str] = "halve"

    def ranks_by(self) -> tuple[str, ...]:
        return ("kl",)

    def search(self, problem: Problem) -> Search:
        yield KeepRequest(plan_of(problem))


def plan_of(problem: Problem, amount: float = 0.5, name: str = "") -> dict[str, Treatment]:
    compressor = next(iter(problem.offers))
    return {name or component.name: Treatment(compressor, amount) for component in problem.components}


def plan_by_row(problem: Problem, compressor: str = "prune", more: int = 0) -> dict[str, Treatment]:
    """Half of everything, given row by row, for `more` rows than there are; as `plan_of` does where that is missing."""
    if compressor not in problem.offers:
        return plan_of(problem)
    return {c.name: Treatment(compressor, 0.5, rows=(0.5,) * (c.shape[0] + more)) for c in problem.components}


class TestHonestSchedule(ScheduleContract):
    instance = Halve()


@dataclass
class HalveRows(Halve):
    """As honest, with an amount for every row where that is offered."""

    def search(self, problem: Problem) -> Search:
        yield KeepRequest(plan_by_row(problem))


class TestHonestScheduleByRow(ScheduleContract):
    instance = HalveRows()


def endless(self: Schedule, problem: Problem) -> Search:
    while True:
        yield ScoreRequest([{}], ("kl",))


def draws(self: Schedule, problem: Problem) -> Search:
    yield KeepRequest(plan_of(problem), target=random.random())


def seeds(self: Schedule, problem: Problem) -> Search:
    np.random.seed(0)
    yield KeepRequest(plan_of(problem))


def proves(self: Schedule, problem: Problem) -> Search:
    (scores,) = yield ScoreRequest([plan_of(problem)], ("kl",), Prefixes.PROOF)
    yield KeepRequest(plan_of(problem, 0.5 if scores["kl"].mean < 0.4 else 0.75))


def remembers(self: Any, problem: Problem) -> Search:  # noqa: ANN401 - has a field that Schedule lacks
    self.runs = getattr(self, "runs", 0) + 1
    yield KeepRequest(plan_of(problem, 0.5 if self.runs < 4 else 0.75))


def imports_torch(self: Schedule, problem: Problem) -> Search:
    import torch.nn

    yield KeepRequest(plan_of(problem, float(torch.nn.Parameter(torch.tensor(0.5)))))


def asks(*requests: Callable[[Problem], Any]) -> Callable[[Schedule, Problem], Search]:
    def search(self: Schedule, problem: Problem) -> Search:
        for request in requests:
            yield request(problem)

    return search


BROKEN_SCHEDULES: dict[str, tuple[str, Callable[..., Search]]] = {
    "endless": ("ends_and_keeps_a_plan", endless),
    "nothing": ("ends_and_keeps_a_plan", asks(lambda p: ScoreRequest([{}], ("kl",)))),
    "unknown_component": ("ends_and_keeps_a_plan", asks(lambda p: KeepRequest(plan_of(p, name="lm_head")))),
    "unknown_metric": ("ends_and_keeps_a_plan", asks(lambda p: ScoreRequest([{}], ("fdtm",)))),
    "not_offered": ("ends_and_keeps_a_plan", asks(lambda p: KeepRequest(plan_of(p, 0.6)))),
    "rows_not_offered": ("ends_and_keeps_a_plan", asks(lambda p: KeepRequest(plan_by_row(p, "round")))),
    "too_few_rows": ("ends_and_keeps_a_plan", asks(lambda p: KeepRequest(plan_by_row(p, more=-1)))),
    "gives_back": (
        "ends_and_keeps_a_plan",
        asks(lambda p: KeepRequest(plan_of(p, 0.75)), lambda p: KeepRequest(plan_of(p, 0.5))),
    ),
    "unsorted": ("ends_and_keeps_a_plan", asks(lambda p: CountRequest(next(iter(p.offers)), (0.5, 0.1)))),
    "draws": ("is_a_function_of_problem_and_answers", draws),
    "seeds": ("is_a_function_of_problem_and_answers", seeds),
    "remembers": ("is_a_function_of_problem_and_answers", remembers),
    "resumes_elsewhere": ("goes_on_from_its_answers", remembers),
    "proves": ("decides_nothing_on_proof_prefixes", proves),
    "torch": ("needs_no_torch", imports_torch),
}


@pytest.mark.parametrize("case", BROKEN_SCHEDULES)
def test_broken_schedule_is_noticed(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    promise, search = BROKEN_SCHEDULES[case]
    arguments = {"monkeypatch": monkeypatch} if promise == "needs_no_torch" else {}
    plugin = dataclass(type("Broken", (Halve,), {"search": search}))()
    with pytest.raises((AssertionError, PluginError, ImportError)):
        getattr(ScheduleContract(), f"test_{promise}")(plugin, **arguments)
