"""A search without a model: answers a schedule's requests with made-up numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
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
    ValuesRequest,
)
from compressor.errors import PluginError
from compressor.search.ranking import choose_best

MOST_REQUESTS = 1000


@dataclass(frozen=True)
class AdditiveDamage:
    """damage(plan) = Σ_c h_c a_c² / Σ_c h_c, with a hardness h_c that differs between components.

    Damage is a made-up loss of quality in [0, 1], and 0 for the empty plan.
    """

    hardness: Mapping[str, float]

    @classmethod
    def for_components(cls, components: Sequence[Component], turn: int = 0) -> "AdditiveDamage":
        """Hardness 1, 2, 3, 1, … times the number of weights; `turn` shifts this sequence."""
        return cls({c.name: (1 + (index + turn) % 3) * c.parameters for index, c in enumerate(components)})

    @cached_property
    def total(self) -> float:
        return sum(self.hardness.values())

    def of(self, plan: Plan) -> float:
        return sum(self.hardness[name] * treatment.amount**2 for name, treatment in plan.items()) / self.total


@dataclass
class DryRun:
    """The oracle with made-up answers. Raises PluginError if a round takes back what an earlier one took.

    Metrics whose lower values are better equal the damage; others equal tokens · (1 − damage). `proof_shift` is added
    to all values on proof prefixes. `made_up` computes the damage of a plan as a sum over components; by default it is
    `AdditiveDamage`. `kept` is the plan on the imaginary model; `requests` and `answers` are those of `play`.
    Tests override `damage`, `size`, `score_plan` or `spread` for other answers.
    """

    problem: Problem
    proof_shift: float = 0.0
    made_up: Callable[[Plan], float] | None = None
    kept: dict[str, Treatment] = field(default_factory=dict)
    requests: list[Request[Any]] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def play(self, schedule: Schedule, most: int = MOST_REQUESTS) -> None:
        """Run a schedule to its end; raises PluginError after more than `most` requests."""
        dialogue = Dialogue(schedule, self.problem)
        while (request := dialogue.propose()) is not None:
            self.requests.append(request)
            self.answers.append(request.ask(self))
            dialogue.tell(self.answers[-1])
            if len(self.requests) > most:
                raise PluginError(f"schedule `{schedule.name}` makes more than {most} requests; it must come to an end")

    @cached_property
    def components(self) -> dict[str, Component]:
        return {component.name: component for component in self.problem.components}

    @cached_property
    def _damage(self) -> Callable[[Plan], float]:
        return self.made_up or AdditiveDamage.for_components(self.problem.components).of

    def damage(self, plan: Plan) -> float:
        """The damage of a whole plan, in [0, 1]."""
        return self._damage(plan)

    def size(self, name: str, option: Treatment | None) -> int:
        """Bits of an option: stored bits · (1 − amount)."""
        treatment = self._replace({}, name, option).get(name)
        component = self.components[name]
        return round(component.parameters * component.stored_bits * (1 - (treatment.amount if treatment else 0.0)))

    def score_plan(self, plan: Plan, metrics: Sequence[str], prefixes: Prefixes) -> Scores:
        """The scores of one trial."""
        shift = self.proof_shift if prefixes is Prefixes.PROOF else 0.0
        damage = self.damage({**self.kept, **plan})
        lower, higher = flat_score(damage + shift), flat_score(self.problem.tokens * (1 - damage) + shift)
        return {name: lower if self.problem.better[name] is Better.LOWER else higher for name in metrics}

    def spread(self, scores: Scores, sequences: int) -> dict[str, NDArray[np.float64]]:
        """Values per sequence: the mean of the scores for every sequence."""
        return {name: np.full(sequences, score.mean) for name, score in scores.items()}

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        return tuple(self.score_plan(plan, request.metrics, request.prefixes) for plan in request.trials)

    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        sequences = len(range(self.problem.prefixes)[request.start : request.stop])
        scored = [self.score_plan(plan, request.metrics, request.prefixes) for plan in request.trials]
        return tuple(self.spread(scores, sequences) for scores in scored)

    def best(self, request: BestRequest) -> Best:
        """Only the chosen trials have scores, because a run may leave the others unmeasured."""
        scores = [self.score_plan(plan, (request.metric,), Prefixes.SEARCH) for plan in request.trials]
        chosen = choose_best(request, self.problem.better[request.metric], scores).chosen
        return Best(chosen, tuple(found if index in chosen else None for index, found in enumerate(scores)))

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """The exact difference of scores, the same for every sequence, divided evenly between rows."""
        whole = {**self.kept, **request.at}
        answer = {}
        for name, options in request.options.items():
            before = whole
            if self.made_up is not None:  # it is a sum over components, so the others have no effect
                before = {name: whole[name]} if name in whole else {}
            changes = np.array([self.damage(self._replace(before, name, option)) for option in options])
            changes -= self.damage(before)
            if self.problem.better[request.objective] is Better.HIGHER:
                changes *= -self.problem.tokens
            out = self.components[name].shape[0]
            rows = np.tile(changes / out, (out, 1)) if request.by_row else None
            sequences = len(range(self.problem.prefixes)[request.start : request.stop])
            answer[name] = Estimate(np.tile(changes, (sequences, 1)), rows)
        return answer

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        return {name: [self.size(name, option) for option in options] for name, options in request.options.items()}

    def counts(self, request: CountRequest) -> dict[str, list[int]]:
        """The importance in component i is distributed evenly over (0, 1 + i % 3]."""
        return {
            component.name: [
                math.floor(component.parameters * min(max(threshold / (1 + index % 3), 0.0), 1.0))
                for threshold in request.thresholds
            ]
            for index, component in enumerate(self.problem.components)
        }

    def keep(self, request: KeepRequest) -> dict[str, float]:
        for name, treatment in request.plan.items():
            if name in self.kept and treatment.amount < self.kept[name].amount - Offer.TOLERANCE:
                raise PluginError(
                    f"amounts are cumulative: `{name}` has {self.kept[name].amount:g}, kept is {treatment}"
                )
        self.kept.update(request.plan)
        kept = {name: treatment.amount for name, treatment in self.kept.items()}
        return {component.name: kept.get(component.name, 0.0) for component in self.problem.components}

    def _replace(self, plan: Plan, name: str, option: Treatment | None) -> Plan:
        """The plan with another option for one component; None is its kept treatment."""
        chosen = self.kept.get(name) if option is None else option
        others = {other: treatment for other, treatment in plan.items() if other != name}
        return others if chosen is None else {**others, name: chosen}


def flat_score(v: float) -> Score:
    """A score whose every statistic is `v`."""
    return Score(v, v, v, v, v, v, low=v, high=v, p75_low=v, p75_high=v, n=8)
