"""The plan that a schedule makes of predictions alone: its dialogue is played without touching the model."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compressor.contracts import (
    CountRequest,
    Dialogue,
    EstimateRequest,
    KeepRequest,
    Plan,
    Request,
    Schedule,
    ScoreRequest,
    SizeRequest,
)
from compressor.errors import ConfigError
from compressor.search.session import Search
from compressor.sensitivity.cost_table import CostTable

TARGETS = "targets"
"""The option by which a schedule is told the mean amount to reach."""


@dataclass
class Allocation:
    """Asks `schedule` for plans; estimates are read off what `predict` knows of an objective, sizes off `known`.

    `search` says what there is to choose from, and counts weights; the same request is answered once.
    """

    schedule: Schedule
    search: Search
    known: CostTable
    predict: Callable[[str], CostTable]
    answers: list[tuple[Request, Any]] = field(default_factory=list)

    def find_plan(self, amount: float) -> Plan:
        """The first plan that the schedule would keep for a mean amount; raises ConfigError if it must score."""
        dialogue = open_dialogue(self.schedule, self.search, amount)
        while (request := dialogue.propose()) is not None:
            if isinstance(request, KeepRequest):
                return request.plan
            dialogue.tell(self.answer(request))
        raise ConfigError(f"schedule `{self.schedule.name}` kept no plan; check its options")

    def answer(self, request: Request) -> Any:  # noqa: ANN401 - each request says what its answer is
        """What is remembered, or found out now."""
        for earlier, answer in self.answers:
            if earlier == request:
                return answer
        answer = self.find_answer(request)
        self.answers.append((request, answer))
        return answer

    def find_answer(self, request: Request) -> Any:  # noqa: ANN401 - as above
        """Read an answer off the predictions, or off the weights; raises ConfigError where only a trial could tell."""
        match request:
            case EstimateRequest(measured=False):
                return self.predict(request.objective).answer_estimate(request)
            case SizeRequest():
                return self.known.answer_sizes(request)
            case CountRequest():
                return self.search.answer(request)
            case _:
                raise refuse_trials(self.schedule)


def refuse_trials(schedule: Schedule) -> ConfigError:
    """The error for a schedule that wants to know what only a trial could tell."""
    return ConfigError(
        f"schedule `{schedule.name}` scores trials, and a forecast only estimates; use schedule.corrections=0, leave "
        "`schedule` out, or use compressor run"
    )


def open_dialogue(schedule: Schedule, search: Search, amount: float) -> Dialogue:
    """The dialogue for a mean amount; raises ConfigError for a schedule that does not aim at amounts, or only tries."""
    if not hasattr(schedule, TARGETS):
        raise ConfigError(
            f"schedule `{schedule.name}` takes no `schedule.{TARGETS}`, over which a forecast draws its curve; leave "
            "`schedule` out, or choose one that does"
        )
    aimed: Schedule = dataclasses.replace(schedule, **{TARGETS: [amount]})  # type: ignore[type-var]
    dialogue = search.begin(aimed)
    if isinstance(dialogue.propose(), ScoreRequest):
        raise refuse_trials(schedule)
    return dialogue
