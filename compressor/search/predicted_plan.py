"""The plan of a schedule from predictions only: its requests are answered without changing the model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from compressor.contracts import (
    BestRequest,
    CountRequest,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Plan,
    Problem,
    Request,
    Schedule,
    ScoreRequest,
    SizeRequest,
    ValuesRequest,
)
from compressor.errors import ConfigError
from compressor.search.fused_components import open_dialogue
from compressor.search.session import Session
from compressor.sensitivity.cost_table import CostTable

T = TypeVar("T")


@dataclass
class PredictedOracle:
    """The oracle of a forecast. Estimates come from `predict` (objective -> cost table), sizes from `known`.

    `count` counts weights. Requests that need a trial raise ConfigError. `plan` is the first plan that the schedule
    keeps. Answers are cached by request.
    """

    schedule: str
    known: CostTable
    predict: Callable[[str], CostTable]
    count: Callable[[CountRequest], dict[str, list[int]]]
    plan: Plan | None = None
    answers: list[tuple[Request[Any], Any]] = field(default_factory=list)

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        if request.measured:
            raise refuse_trials(self.schedule)
        return self._remember(request, lambda: self.predict(request.objective).answer_estimate(request))

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        return self._remember(request, lambda: self.known.answer_sizes(request))

    def counts(self, request: CountRequest) -> dict[str, list[int]]:
        return self._remember(request, lambda: self.count(request))

    def keep(self, request: KeepRequest) -> dict[str, float]:
        if self.plan is None:
            self.plan = request.plan
        amounts = {name: treatment.amount for name, treatment in request.plan.items()}
        return {name: amounts.get(name, 0.0) for name in self.known.components}

    def score(self, request: ScoreRequest) -> NoReturn:
        raise refuse_trials(self.schedule)

    def values(self, request: ValuesRequest) -> NoReturn:
        raise refuse_trials(self.schedule)

    def best(self, request: BestRequest) -> NoReturn:
        raise refuse_trials(self.schedule)

    def _remember(self, request: Request[T], find: Callable[[], T]) -> T:
        for earlier, answer in self.answers:
            if earlier == request:
                found: T = answer  # an equal request has an answer of the same type
                return found
        found = find()
        self.answers.append((request, found))
        return found


def find_plan(schedule: Schedule, amount: float, problem: Problem, fuses: bool, oracle: PredictedOracle) -> Plan:
    """The first plan that the schedule keeps for a mean amount; raises ConfigError if it scores trials."""
    dialogue, fused = open_dialogue(aim(schedule, amount), problem, oracle, fuses)
    oracle.plan = None
    for _ in dialogue.converse(fused):
        if oracle.plan is not None:
            break
    if oracle.plan is None:
        raise ConfigError(f"schedule `{schedule.name}` kept no plan; check its options")
    return oracle.plan


def aim(schedule: Schedule, amount: float) -> Schedule:
    """The same schedule, which has an option `targets`, with one mean amount as target."""
    aimed: Schedule = dataclasses.replace(schedule, targets=[amount])  # type: ignore[type-var]
    return aimed


def check_predictable(schedule: Schedule, amount: float, session: Session) -> None:
    """Raise ConfigError, before anything is measured, for a schedule that starts by scoring trials."""
    dialogue, _ = session.begin(aim(schedule, amount))
    if isinstance(dialogue.propose(), ScoreRequest | ValuesRequest | BestRequest):
        raise refuse_trials(schedule.name)


def refuse_trials(schedule: str) -> ConfigError:
    """The error for a schedule that scores trials."""
    return ConfigError(
        f"schedule `{schedule}` scores trials, and a forecast only estimates; use schedule.corrections=0, leave "
        "`schedule` out, or use compressor run"
    )
