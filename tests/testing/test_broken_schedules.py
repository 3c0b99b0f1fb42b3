"""The suite of schedules notices every broken promise, one mutant for each, and lets honest schedules pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from compressor.contracts import KeepRequest, Prefixes, Problem, Schedule, ScoreRequest, Search, Treatment
from compressor.errors import PluginError
from compressor.testing import ScheduleContract
from tests.support.broken_plugins import broken, list_tests


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


def plan_by_row(problem: Problem, compressor: str = "prune") -> dict[str, Treatment]:
    """Half of everything, given row by row; as `plan_of` does where that is missing."""
    if compressor not in problem.offers:
        return plan_of(problem)
    return {c.name: Treatment(compressor, 0.5, rows=(0.5,) * c.shape[0]) for c in problem.components}


class TestHonestSchedule(ScheduleContract):
    instance = Halve()


@dataclass
class HalveRows(Halve):
    """As honest, with an amount for every row where that is offered."""

    def search(self, problem: Problem) -> Search:
        yield KeepRequest(plan_by_row(problem))


class TestHonestScheduleByRow(ScheduleContract):
    instance = HalveRows()


def keeps_nothing(self: Schedule, problem: Problem) -> Search:
    yield ScoreRequest([{}], ("kl",))


def proves(self: Schedule, problem: Problem) -> Search:
    (scores,) = yield ScoreRequest([plan_of(problem)], ("kl",), Prefixes.PROOF)
    yield KeepRequest(plan_of(problem, 0.5 if scores["kl"].mean < 0.4 else 0.75))


def remembers(self: Any, problem: Problem) -> Search:  # noqa: ANN401 - has a field that Schedule lacks
    self.runs = getattr(self, "runs", 0) + 1
    yield KeepRequest(plan_of(problem, 0.5 if self.runs < 4 else 0.75))


def imports_torch(self: Schedule, problem: Problem) -> Search:
    import torch.nn

    yield KeepRequest(plan_of(problem, float(torch.nn.Parameter(torch.tensor(0.5)))))


MUTANTS: dict[str, Callable[..., Search]] = {
    "ends_and_keeps_a_plan": keeps_nothing,
    "is_a_function_of_problem_and_answers": remembers,
    "goes_on_from_its_answers": remembers,
    "decides_nothing_on_proof_prefixes": proves,
    "needs_no_torch": imports_torch,
}
"""Promise -> a search that breaks it."""


def test_every_promise_has_a_mutant() -> None:
    assert list_tests(ScheduleContract) - {"can_be_registered_and_configured"} == {*MUTANTS}


@pytest.mark.parametrize("promise", MUTANTS)
def test_a_broken_promise_is_noticed(promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"monkeypatch": monkeypatch} if promise == "needs_no_torch" else {}
    plugin = broken(Halve, search=MUTANTS[promise])
    with pytest.raises((AssertionError, PluginError, ImportError)):
        getattr(ScheduleContract(), f"test_{promise}")(plugin, **arguments)
