"""One round of a budget: estimate costs, solve, then correct the plan."""

from dataclasses import dataclass, field

from compressor.contracts import Asks, Plan
from compressor.sensitivity.unreached import can_be_reached, describe_unreached

from .convex_hull import Array
from .limits import Limit
from .options import Table
from .questions import Estimates, Questions, merge

FIRST_PREFIXES = 32
"""Prefixes of the first estimate. Their number is doubled until the plan settles."""
SETTLED = 0.005
"""A plan has settled if twice the prefixes change it by at most this (see `Choices.distance`)."""
SMALLEST_SHARE = 1 / 16
"""Corrections end if this share of the trust region gives no better plan."""
ROWS_SHARE = 1 / 4
"""The first share of the trust region for rows. It is smaller because estimates of single rows are noisier."""
TIGHTER = 3
"""How often the limit is tightened if a plan stores more than its options predict."""


@dataclass
class BudgetRound:
    """Finds the plan of one round. The methods are generators of requests; most return the plan and its size."""

    inquiry: Questions
    limit: Limit
    notes: list[str] = field(default_factory=list)
    """Sentences for the user about the plan."""
    prefixes: int = 0
    """The number of prefixes on which the plan settled."""
    reached: frozenset[str] = frozenset()
    """Components that a token of these prefixes reached. The others stay unchanged."""
    singles: float = 0.0
    """The sum of the changes of the objective's first value by each treatment of the plan alone."""
    alone: Table = field(default_factory=lambda: Table({}, {}, {}))
    """The cost of every option at the start of the round."""

    def run(self, corrections: int) -> Asks[Plan]:
        """The plan after at most `corrections` attempts; raises ConfigError if the limit is out of reach."""
        plan, size = yield from self.solve_first()
        self.limit.require(size, self.notes)
        if corrections:
            plan, size = yield from self.correct(plan, size, corrections)
        self.singles = self.inquiry.sign * self.inquiry.choices.add_singles(self.alone, plan)
        if note := self.limit.describe_rest(size):
            self.notes.append(note)
        return plan

    def solve_first(self) -> Asks[tuple[Plan, float]]:
        """The plan from estimates at the start of the round, with more and more prefixes until the plan settles."""
        choices = self.inquiry.choices
        options = choices.begin()
        sizes = yield from self.inquiry.ask_sizes(options)
        self.limit.require(sum(float(values.min(axis=1).sum()) for values in sizes.values()))
        found: Estimates = {}
        plan: Plan = {}
        size, last = 0.0, choices.problem.prefixes
        while self.prefixes < last:
            start, self.prefixes = self.prefixes, min(last, 2 * self.prefixes or FIRST_PREFIXES)
            found = merge(found, (yield from self.inquiry.ask_estimates(options, {}, start, self.prefixes)))
            self.reached = frozenset(name for name, estimate in found.items() if estimate.reached)
            before = plan
            self.alone = self.inquiry.tabulate(options, sizes, found, self.reached)
            plan, size = yield from self._solve(self.alone)
            if start and choices.distance(before, plan) <= SETTLED and not self._may_reach_more():
                break
        self._note_unreached()
        return plan, size

    def correct(self, plan: Plan, size: float, attempts: int) -> Asks[tuple[Plan, float]]:
        """Improves the plan with estimates around it; only plans that measure cheaper (`is_cheaper`) are accepted.

        It starts from the plan with one option, or amount, for all components if that is better, because estimates at
        the start of the round may be wrong far from the base.
        """
        best = yield from self.inquiry.ask_costs(plan)
        if (alike := self.inquiry.choices.alike(self.alone, self.limit.total)) and alike != plan:
            stored = yield from self.inquiry.ask_size(alike)
            if self.limit.allows(stored) and is_cheaper(costs := (yield from self.inquiry.ask_costs(alike)), best):
                plan, size, best = alike, stored, costs
        share, table = ROWS_SHARE if self.inquiry.by_row else 1.0, None
        for _ in range(attempts):
            table = table or (yield from self._look_around(plan))
            candidate, stored = yield from self._solve(table, plan, share)
            if candidate == plan:
                break
            costs = yield from self.inquiry.ask_costs(candidate)
            if is_cheaper(costs, best) and self.limit.allows(stored):
                plan, size, best, table = candidate, stored, costs, None
            elif share <= SMALLEST_SHARE:
                break
            else:
                share /= 2
        return plan, size

    def _look_around(self, plan: Plan) -> Asks[Table]:
        """The costs of options near the plan. Their estimates, of every prefix, are not kept: they take much memory."""
        options = self.inquiry.choices.near(plan)
        sizes = yield from self.inquiry.ask_sizes(options)
        found = yield from self.inquiry.ask_estimates(options, plan, 0, self.prefixes)
        return self.inquiry.tabulate(options, sizes, found, self.reached)

    def _solve(self, table: Table, around: Plan | None = None, share: float = 1.0) -> Asks[tuple[Plan, float]]:
        """The plan of least cost that fits; the smallest plan if none fits.

        An amount between two options may store more than interpolation predicts; then it solves with a tighter limit.
        """
        limit = self.limit.total
        for _ in range(TIGHTER):
            plan = self.inquiry.choices.solve(table, limit, around, share)
            size = yield from self.inquiry.ask_size(plan)
            if self.limit.allows(size):
                break
            limit -= 2 * (size - self.limit.total)
        return plan, size

    @property
    def _unreached(self) -> list[str]:
        return [c.name for c in self.inquiry.choices.problem.components if c.name not in self.reached]

    def _may_reach_more(self) -> bool:
        problem = self.inquiry.choices.problem
        return can_be_reached(problem.components, self._unreached, self.prefixes * problem.tokens)

    def _note_unreached(self) -> None:
        problem = self.inquiry.choices.problem
        if names := self._unreached:
            said = describe_unreached(problem.components, names, self.prefixes, problem.tokens)
            self.notes.append(f"Unchanged stay {said}.")


def is_cheaper(costs: Array, others: Array) -> bool:
    """Whether `costs` are lower than `others` (both `[sequence]`) by more than the standard error of the difference.

    A smaller difference could easily be reversed on other prefixes.
    """
    gains = others - costs
    error = float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return float(gains.mean()) > error
