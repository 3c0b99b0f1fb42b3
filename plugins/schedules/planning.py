"""One round of a budget: estimate, solve, and correct where the plan stands."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compressor.contracts import Estimate, EstimateRequest, Problem, Request, ScoreRequest, SizeRequest
from compressor.values import Plan

from .amounts import Amounts
from .limits import Limit, refuse_limit
from .menus import Menus

FIRST_PREFIXES = 32
"""Prefixes that are estimated on before a plan is made; then twice as many, until it settles."""
SETTLED = 0.005
"""A plan is settled when twice the prefixes move its amounts by no more than this, in the mean over weights."""
SMALLEST_SHARE = 1 / 16
"""Corrections end when so small a share of the trust region brings nothing."""
ROWS_SHARE = 1 / 4
"""Rows begin with a smaller region than matrices: there are so many of them that their estimates are noisier."""
UNSPENT = 0.002
"""A smaller share of the budget that is left over is not worth a note."""

Choices = Mapping[str, Any]
Asks = Generator[Request, Any, Any]
Estimates = Mapping[str, Estimate]


@dataclass
class Planning:
    """Finds the plan of one round; `run` is a generator of requests that returns the plan."""

    problem: Problem
    space: Amounts | Menus
    limit: Limit
    objective: str
    measured: bool
    by_row: bool
    notes: list[str] = field(default_factory=list)
    prefixes: int = 0
    """On how many the plan settled."""

    def run(self, corrections: int) -> Asks:
        """The plan after at most so many attempts to correct it; `notes` say what a person should know of it."""
        plan = yield from self.solve_first()
        if corrections:
            plan = yield from self.correct(plan, corrections)
        yield from self.note_rest(plan)
        return plan

    def solve_first(self) -> Asks:
        """The plan from estimates at the start of the round, on as many prefixes as it takes to settle."""
        choices = self.space.begin()
        sizes = yield from self._measure_sizes(choices)
        smallest = sum(float(values.min(axis=-1).sum()) for values in sizes.values())
        if smallest > self.limit.total * (1 + 1e-9):
            raise refuse_limit(self.limit, smallest, self.problem)
        found: Estimates = {}
        plan: Plan = {}
        while self.prefixes < self.problem.prefixes:
            stop = min(self.problem.prefixes, 2 * self.prefixes or FIRST_PREFIXES)
            more = yield self._ask(choices, {}, self.prefixes, stop)
            found = {name: merge(found.get(name), estimate) for name, estimate in more.items()}
            before, self.prefixes = plan, stop
            plan = self._solve(choices, sizes, found, {}, 1.0)
            if before and self._distance(before, plan) <= SETTLED:
                break
        self.note_unreached([name for name, estimate in found.items() if not estimate.reached])
        return plan

    def correct(self, plan: Plan, attempts: int) -> Asks:
        """A better plan, by solving again where the plan stands; only what measures better is taken."""
        best = yield from self._score(plan)
        share, estimates = ROWS_SHARE if self.by_row else 1.0, None
        for _ in range(attempts):
            if estimates is None:
                choices = self.space.near(plan)
                sizes = yield from self._measure_sizes(choices)
                estimates = yield self._ask(choices, plan, 0, self.prefixes)
            candidate = self._solve(choices, sizes, estimates, plan, share)
            if candidate == plan or share < SMALLEST_SHARE:
                break
            cost = yield from self._score(candidate)
            if cost < best:
                plan, best, estimates = candidate, cost, None
            else:
                share /= 2
        return plan

    def note_unreached(self, names: Sequence[str]) -> None:
        if names:
            self.notes.append(
                f"{len(names)} components stay as they were, for no token of the search prefixes came to them: "
                f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}; more prefixes may reach them."
            )

    def note_rest(self, plan: Plan) -> Asks:
        """Say how much of the budget is left; raises ConfigError where the plan does not fit into it."""
        choices = {component.name: [plan.get(component.name)] for component in self.problem.components}
        sizes = yield from self._measure_sizes(choices)
        total = sum(float(np.sum(values)) for values in sizes.values())
        if total > self.limit.total * (1 + 1e-9):
            raise refuse_limit(self.limit, total, self.problem, *self.notes)
        rest = 1 - total / self.limit.total
        if rest > UNSPENT:
            self.notes.append(
                f"{rest:.1%} of the budget stay unspent: nothing that it could buy makes the plan better."
            )

    def _ask(self, choices: Choices, plan: Plan, start: int, stop: int) -> EstimateRequest:
        return EstimateRequest(choices, self.objective, plan, start, stop, self.by_row, self.measured)

    def _measure_sizes(self, choices: Choices) -> Asks:
        if not self.limit.in_bits:
            return self.space.sizes(choices)
        answer = yield SizeRequest(choices)
        return {name: np.array(bits, dtype=np.float64) for name, bits in answer.items()}

    def _solve(self, choices: Choices, sizes: Any, estimates: Estimates, plan: Plan, share: float) -> Plan:  # noqa: ANN401
        """The space's plan, from what is known; a cost is what makes the objective worse."""
        sign = -self.problem.better[self.objective].sign
        known = {name: estimate for name, estimate in estimates.items() if estimate.reached}
        costs = {name: sign * values for name, values in self.space.costs(known).items()}
        return self.space.solve(choices, sizes, costs, self.limit.total, plan, share)

    def _score(self, plan: Plan) -> Asks:
        """The objective of a plan on all search prefixes, lower being better."""
        (scores,) = yield ScoreRequest([plan], (self.objective,))
        return -self.problem.better[self.objective].sign * scores[self.objective].mean

    def _distance(self, first: Plan, second: Plan) -> float:
        """Mean over weights of how far amounts are apart."""
        amounts = [
            [plan[c.name].amount if c.name in plan else 0.0 for c in self.problem.components]
            for plan in (first, second)
        ]
        weights = [component.parameters for component in self.problem.components]
        return float(np.average(np.abs(np.diff(amounts, axis=0)[0]), weights=weights))


def merge(first: Estimate | None, second: Estimate) -> Estimate:
    """Estimates on two sets of sequences as one."""
    if first is None:
        return second
    counts = [len(first.changes), len(second.changes)]
    rows = None
    if first.rows is not None and second.rows is not None:
        rows = np.average([first.rows, second.rows], axis=0, weights=counts)
    changes = np.concatenate([first.changes, second.changes])
    return Estimate(changes, rows, first.reached or second.reached)
