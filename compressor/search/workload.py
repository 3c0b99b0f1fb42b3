"""How much work a search is: its schedule is rehearsed on made-up answers, and what it asks for is added up."""

import copy
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import (
    BestRequest,
    EstimateRequest,
    KeepRequest,
    Plan,
    Prefixes,
    Problem,
    Request,
    Schedule,
    ScoreRequest,
    SizeRequest,
    Treatment,
)
from compressor.contracts.requests import list_measured
from compressor.search.dry_run import DryRun
from compressor.search.trial_scoring import PASSES_OF_WALK, share_prefixes
from compressor.sensitivity.estimator import KEPT_NUMBERS, count_walks

log = logging.getLogger(__name__)
SECONDS = 1.0
"""A rehearsal that takes longer is left."""
ROWS = 8
"""A rehearsed matrix has at most so many."""


@dataclass
class Work:
    """What a search does. `trials` and `passes` count as in the record of a round.

    `runs` are passes over all search prefixes with what trials share taken once, `treated` the weights that are
    compressed. `lines` and `treatments` are those of scores.jsonl. At once there are at most `together` trials, the
    weights of a trial are at most `changed`, and an estimate holds at most `held` changes of weights. In the end `kept`
    weights are treated. `whole` is False where the rehearsal was left before its end: all of this is then too little.
    """

    trials: int = 0
    passes: float = 0.0
    runs: float = 0.0
    treated: int = 0
    lines: int = 0
    treatments: int = 0
    together: int = 0
    changed: int = 0
    held: int = 0
    kept: int = 0
    whole: bool = True


@dataclass
class Tally(DryRun):
    """A rehearsal that adds up its work, on a model of `layers` layers; `shares` says that trials share work.

    Where a search depends on what it is told this is about the most: every score is twice as good as those before, and
    every estimate finds other components hard, so that what goes on while it gains goes on as long as it may. Of trials
    of which the best are wanted all are measured, also in the approximate mode.
    """

    layers: int = 1
    shares: bool = True
    work: Work = field(default_factory=Work)
    scored: int = 0
    estimated: int = 0

    def answer(self, request: Request) -> Any:  # noqa: ANN401 - each request says what its answer is
        self.charge(request)
        answer = super().answer(request)
        self.scored += isinstance(request, ScoreRequest | BestRequest)
        self.estimated += isinstance(request, EstimateRequest)
        return answer

    def damage(self, plan: Plan) -> float:
        return super().damage(plan) * 0.5**self.scored

    def differ(self, plan: Plan, name: str, options: Sequence[Treatment | None]) -> NDArray[np.float64]:
        """As damage adds up, other components make no difference."""
        return super().differ({name: plan[name]} if name in plan else {}, name, options)

    def hardness(self) -> dict[str, float]:
        return self._turns[self.estimated % len(self._turns)]

    @cached_property
    def _turns(self) -> list[dict[str, float]]:
        numbered = list(enumerate(self.components.items()))
        return [{name: (1 + (i + turn) % 3) * c.parameters for i, (name, c) in numbered} for turn in range(3)]

    def forget(self) -> None:
        """Drop what was asked and answered: it is not looked at again, and there may be much of it."""
        self.requests.clear()
        self.answers.clear()

    def check_plan(self, plan: Plan) -> None:
        """That a plan can be applied is the run's to check."""

    def charge(self, request: Request) -> None:
        """Add what a request costs."""
        match request:
            case ScoreRequest():
                is_search = request.prefixes is Prefixes.SEARCH
                self.charge_trials(request.trials, self.share(request), is_search)
                self.charge_lines(request.trials)
            case BestRequest():
                self.charge_trials(request.trials, 1.0)
                self.charge_lines(request.trials)
            case EstimateRequest(measured=True):
                self.charge_trials(list_measured(request), self.share(request))
            case EstimateRequest():
                passes = count_walks(request, is_base=not self.kept) * PASSES_OF_WALK * self.share(request)
                self.work.passes += passes
                self.work.runs += passes
                changes = self.charge_options(request)
                held = sum(changes) if sum(changes) <= KEPT_NUMBERS else max(changes)
                self.work.held = max(self.work.held, held)
            case SizeRequest():
                self.charge_options(request)
            case KeepRequest():
                self.work.runs += 1
                self.work.treated += self.weigh(request.plan)
                self.work.kept = self.weigh({**self.kept, **request.plan})

    def share(self, request: ScoreRequest | EstimateRequest) -> float:
        return share_prefixes(self.problem.prefixes, request.start, request.stop)

    def weigh(self, plan: Plan) -> int:
        """The weights that a plan treats."""
        return sum(self.components[name].parameters for name in plan)

    def charge_trials(self, trials: Sequence[Plan], share: float, on_search: bool = True) -> None:
        work, weights = self.work, [self.weigh(plan) for plan in trials]
        work.trials += len(trials)
        work.passes += share * len(trials) if on_search else 0.0
        work.runs += share * self.count_runs(trials)
        work.treated += sum(weights)
        work.together = max(work.together, len(trials))
        work.changed = max([work.changed, *weights])

    def charge_lines(self, trials: Sequence[Plan]) -> None:
        self.work.lines += len(trials)
        self.work.treatments += sum(map(len, trials))

    def charge_options(self, request: EstimateRequest | SizeRequest) -> list[int]:
        """The weights of all options of each component; all are compressed."""
        weights = [self.components[name].parameters * len(options) for name, options in request.options.items()]
        self.work.treated += sum(weights)
        return weights

    def count_runs(self, trials: Sequence[Plan]) -> float:
        """Forward passes of trials that are scored together: a layer is run once for all that are the same up to it."""
        if not self.shares or len(trials) == 1:
            return len(trials)
        nodes, runs = dict[object, int](), set[tuple[int, int]]()
        alone, last = 0, -1
        for plan in trials:
            changes = self.sort_changes(plan)
            if not changes or None in changes:
                alone += 1
                continue
            first, node = min(changes), 0
            last = max(last, first)
            for layer in range(first, self.layers):
                if layer in changes:
                    node = nodes.setdefault((node, layer, frozenset(changes[layer])), len(nodes) + 1)
                runs.add((layer, node))
        return alone + (last + 1 + len(runs)) / self.layers

    def sort_changes(self, plan: Plan) -> dict[Any, list[object]]:
        """Layer -> what a plan changes there; None is outside of the layers."""
        changes: dict[Any, list[object]] = {}
        for name, treatment in plan.items():
            changes.setdefault(self.components[name].layer, []).append((name, treatment.compressor, treatment.amount))
        return changes


def fold_rows(problem: Problem) -> Problem:
    """The same problem with fewer, longer rows: where each row is treated apart, work does not depend on how many."""
    components = []
    for component in problem.components:
        rows = gcd(component.shape[0], ROWS)
        components.append(replace(component, shape=(rows, component.parameters // rows)))
    return replace(problem, components=tuple(components))


def rehearse(tally: Tally, schedule: Schedule, seconds: float = SECONDS) -> bool:
    """Add up the work of a search; False where the schedule cannot be rehearsed, which says nothing against it."""
    until = time.monotonic() + seconds
    try:
        for _ in tally.perform(copy.deepcopy(schedule)):
            tally.forget()
            if time.monotonic() > until:
                tally.work.whole = False
                break
    except Exception as error:  # made-up answers may be such as no model gives
        log.info("schedule `%s` cannot be rehearsed: %s: %s", schedule.name, type(error).__name__, error)
        return False
    return True
