"""A run without a model: answers what a schedule asks by a made-up, additive damage, and checks what it asks for."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import (
    Best,
    BestRequest,
    Better,
    Component,
    CountRequest,
    Dialogue,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Offer,
    Plan,
    Prefixes,
    Problem,
    Request,
    Schedule,
    Score,
    ScoreRequest,
    Scores,
    SizeRequest,
    Treatment,
)
from compressor.errors import PlanError, PluginError
from compressor.search.best import check_request, choose_best


@dataclass
class DryRun:
    """One rehearsed run of a schedule: its requests and their answers, and what is on the imagined model by now.

    damage(plan) = Σ_c h_c a_c² / Σ_c h_c, in [0, 1], with a hardness h_c that differs between components. Metrics that
    are better when lower are the damage, others are tokens · (1 − damage). `proof_shift` is added to all values on
    proof prefixes.
    """

    problem: Problem
    proof_shift: float = 0.0
    kept: dict[str, Treatment] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def play(self, schedule: Schedule, limit: int = 1000) -> None:
        """Answer until the schedule is done; raises PluginError for what no run could answer, or too many requests."""
        for _ in self.perform(schedule):
            if len(self.requests) == limit:
                raise PluginError(
                    f"schedule `{schedule.name}` asks for more than {limit} things; it must come to an end"
                )

    def perform(self, schedule: Schedule) -> Iterator[Request]:
        """Each request, before it is answered; whoever has seen enough may leave."""
        dialogue = Dialogue(schedule, self.problem)
        self.answers = dialogue.answers
        while (request := dialogue.propose()) is not None:
            yield request
            self.requests.append(request)
            dialogue.tell(self.answer(request))

    def answer(self, request: Request) -> Any:  # noqa: ANN401 - each request says what its answer is
        match request:
            case ScoreRequest():
                scores = [self.score(plan, request) for plan in request.trials]
                return tuple(map(self.repeat, scores)) if request.by_sequence else tuple(scores)
            case BestRequest():
                return self.find_best(request)
            case EstimateRequest():
                return self.estimate(request)
            case SizeRequest():
                return {name: [self.size(name, t) for t in options] for name, options in request.options.items()}
            case CountRequest():
                return self.count(request)
            case KeepRequest():
                for waypoint in request.curve:
                    self.check_plan(waypoint.plan)
                return self.keep(request.plan)
        raise PluginError(f"a schedule asks by one of the requests of compressor.contracts, got {request!r}")

    def score(self, plan: Plan, request: ScoreRequest) -> Scores:
        self.check_plan(plan)
        if unknown := set(request.metrics) - set(self.problem.better):
            raise PluginError(
                f"scores of {sorted(unknown)} are asked for, configured are {sorted(self.problem.better)}"
            )
        shift = self.proof_shift if request.prefixes is Prefixes.PROOF else 0.0
        damage = self.damage({**self.kept, **plan})
        values = {
            name: damage if self.problem.better[name] is Better.LOWER else self.problem.tokens * (1 - damage)
            for name in request.metrics
        }
        return {name: flat_score(value + shift) for name, value in values.items()}

    def repeat(self, scores: Scores) -> dict[str, NDArray[np.float64]]:
        """Every metric's mean, the same for each sequence."""
        return {name: np.full(self.problem.prefixes, score.mean) for name, score in scores.items()}

    def find_best(self, request: BestRequest) -> Best:
        """As little as may be answered: only what is chosen has scores."""
        check_request(request)
        asked = ScoreRequest(request.trials, (request.metric,))
        scores = [self.score(plan, asked) for plan in request.trials]
        chosen = choose_best(request, self.problem.better[request.metric], scores).chosen
        return Best(chosen, tuple(found if index in chosen else None for index, found in enumerate(scores)))

    def damage(self, plan: Plan) -> float:
        hardness = self.hardness()
        return sum(hardness[name] * treatment.amount**2 for name, treatment in plan.items()) / sum(hardness.values())

    def hardness(self) -> dict[str, float]:
        return self._hardness

    @cached_property
    def _hardness(self) -> dict[str, float]:
        return {c.name: (1 + index % 3) * c.parameters for index, c in enumerate(self.problem.components)}

    @cached_property
    def components(self) -> dict[str, Component]:
        """Those of the problem, by name."""
        return {component.name: component for component in self.problem.components}

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """Exactly what scores would say, the same for every sequence; rows share it evenly."""
        if request.objective not in (self.problem.better if request.measured else self.problem.estimable):
            raise PluginError(f"`{request.objective}` cannot be estimated, only {sorted(self.problem.estimable)} can")
        self.check_plan(request.at)
        before = {**self.kept, **request.at}
        answer = {}
        for name, options in request.options.items():
            changes = self.differ(before, name, options)
            if self.problem.better[request.objective] is Better.HIGHER:
                changes *= -self.problem.tokens
            out = self.components[name].shape[0]
            rows = np.tile(changes / out, (out, 1)) if request.by_row else None
            answer[name] = Estimate(
                np.tile(changes, (len(range(self.problem.prefixes)[request.start : request.stop]), 1)), rows
            )
        return answer

    def differ(self, plan: Plan, name: str, options: Sequence[Treatment | None]) -> NDArray[np.float64]:
        """`[option]`: how much more damage the plan does with each of them for one component."""
        return np.array([self.damage(self.change(plan, name, option)) for option in options]) - self.damage(plan)

    def change(self, plan: Plan, name: str, option: Treatment | None) -> Plan:
        """The plan with another option for one component; None is what is kept of it."""
        if option is not None:
            self.check_plan({name: option})
        chosen = self.kept.get(name) if option is None else option
        others = {other: treatment for other, treatment in plan.items() if other != name}
        return others if chosen is None else {**others, name: chosen}

    def size(self, name: str, option: Treatment | None) -> int:
        """Amounts are taken as what is saved."""
        treatment = self.change({}, name, option).get(name)
        component = self.components[name]
        return round(component.parameters * component.stored_bits * (1 - (treatment.amount if treatment else 0.0)))

    def count(self, request: CountRequest) -> dict[str, list[int]]:
        """Importance is spread evenly over (0, 1 + i % 3] in component i."""
        if request.compressor not in self.problem.offers or list(request.thresholds) != sorted(request.thresholds):
            raise PluginError(f"counts need a configured compressor and sorted thresholds, got {request!r}")
        return {
            component.name: [
                math.floor(component.parameters * min(max(threshold / (1 + index % 3), 0.0), 1.0))
                for threshold in request.thresholds
            ]
            for index, component in enumerate(self.problem.components)
        }

    def keep(self, plan: Plan) -> dict[str, float]:
        self.check_plan(plan)
        for name, treatment in plan.items():
            if name in self.kept and treatment.amount < self.kept[name].amount - Offer.TOLERANCE:
                raise PluginError(
                    f"amounts are cumulative: `{name}` has {self.kept[name].amount:g}, kept is {treatment}"
                )
        self.kept.update(plan)
        kept = {name: treatment.amount for name, treatment in self.kept.items()}
        return {component.name: kept.get(component.name, 0.0) for component in self.problem.components}

    def check_plan(self, plan: Plan) -> None:
        """Does every treatment of the plan exist? Raises PluginError."""
        for name, treatment in plan.items():
            if name not in self.components:
                raise PluginError(f"the schedule treats `{name}`, which is not a component of its problem")
            offer = self.problem.offers.get(treatment.compressor, {}).get(name)
            if offer is None or (treatment.rows is None and not offer.contains(treatment.amount)):
                raise PluginError(f"the schedule treats `{name}` by {treatment}, offered are {self.problem.offers}")
            if treatment.rows is not None:
                try:
                    offer.require_rows(treatment.rows, treatment.compressor, self.components[name])
                except PlanError as error:
                    raise PluginError(f"the schedule asks for rows that there are not: {error}") from None


def flat_score(v: float) -> Score:
    """A score whose every aggregate is `v`."""
    return Score(v, v, v, v, v, v, low=v, high=v, p75_low=v, p75_high=v, n=8)
