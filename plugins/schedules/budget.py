"""The default search: one backward pass ranks every treatment, and corrections are made where the plan stands."""

import enum
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from compressor.contracts import KeepRequest, Problem, Schedule, Search
from compressor.errors import ConfigError, suggest
from compressor.values import Treatment

from .amounts import Amounts, Array
from .limits import read_limits
from .menus import Menus
from .planning import Planning


class EstimateBy(enum.Enum):
    """Where costs come from: one backward pass for all options together, or a trial for each."""

    one_pass = "one_pass"
    measured = "measured"


class Granularity(enum.Enum):
    """What has an amount of its own."""

    matrix = "matrix"
    row = "row"


@dataclass
class Budget(Schedule):
    """The plan of least cost under a budget: predicted for all options at once, corrected where the plan stands.

        minimise Σ_c cost_c(option_c)   subject to   Σ_c size_c(option_c) ≤ budget

    First a plan from costs at the start of the round, on more and more prefixes until it settles: amounts of a range
    share one slope on their lower convex hulls, fixed options are a multiple-choice knapsack, both together a mixed
    integer program. Then up to `corrections` attempts to do better: costs at the plan, a solution within a trust region
    (10 points of amount, or one option up or down), taken if it measures better on the search prefixes; else the region
    is halved.

    `objective` is a metric that can be estimated: `kl` is the sturdiest, `margin_noise` speaks of the FDT itself.
    `estimate=measured` gets the costs from a trial for each option, and takes any metric. `targets` are cumulative mean
    amounts, a round each; in their place `bits` is the mean over components, scales counted, or `bytes` the whole
    checkpoint on disk. A budget is never exceeded. `granularity=row` gives every output row an amount of its own.

    Source: this project, docs/margin-law.md.
    """

    name: ClassVar[str] = "budget"

    targets: list[float] = field(default_factory=list)
    bits: float | None = None
    bytes: int | None = None
    objective: str = "kl"
    estimate: EstimateBy = EstimateBy.one_pass
    corrections: int = 6
    granularity: Granularity = Granularity.matrix

    def ranks_by(self) -> tuple[str, ...]:
        return (self.objective,)

    def search(self, problem: Problem) -> Search:
        self._check(problem)
        limits = read_limits(problem, self.targets, self.bits, self.bytes)
        by_row = self.granularity is Granularity.row
        floor = {c.name: np.zeros(c.shape[0] if by_row else 1) for c in problem.components}
        for limit in limits:
            planning = Planning(
                problem,
                self._make_space(problem, floor),
                limit,
                self.objective,
                self.estimate is EstimateBy.measured,
                by_row,
            )
            plan = yield from planning.run(self.corrections)
            amounts = yield KeepRequest(plan, limit.target, tuple(planning.notes))
            floor = {name: raise_floor(old, plan.get(name), amounts[name]) for name, old in floor.items()}

    def _make_space(self, problem: Problem, floor: dict[str, Array]) -> Amounts | Menus:
        """What can be chosen: amounts of the one compressor that offers ranges, or the options of all."""
        if len(problem.offers) == 1:
            (compressor,) = problem.offers
            if all(offer.is_range for offer in problem.offers[compressor].values()):
                return Amounts(problem, compressor, self.granularity is Granularity.row, floor)
        return Menus(problem, {name: float(amount.mean()) for name, amount in floor.items()})

    def _check(self, problem: Problem) -> None:
        """Raise ConfigError for options that do not fit the problem."""
        if not problem.components:
            raise ConfigError(
                "no component is selected, at least one is needed; loosen `components.include` or `.exclude`"
            )
        if not problem.offers:
            raise ConfigError(f"schedule `{self.name}` needs a compressor, none is configured; set `compressor`")
        if self.corrections < 0:
            raise ConfigError(f"`schedule.corrections` must not be negative, got {self.corrections}; 0 makes none")
        if self.objective not in problem.better:
            near = suggest(self.objective, problem.better)
            raise ConfigError(f"unknown metric `{self.objective}` in `schedule.objective`; {near}")
        if self.estimate is EstimateBy.one_pass and self.objective not in problem.estimable:
            known = ", ".join(sorted(problem.estimable)) or "none of those configured"
            raise ConfigError(
                f"`schedule.objective={self.objective}` cannot be estimated by one pass, {known} can; choose one of "
                "these, or schedule.estimate=measured"
            )
        if self.granularity is Granularity.row:
            self._check_rows(problem)

    def _check_rows(self, problem: Problem) -> None:
        """Raise ConfigError where rows cannot have amounts of their own."""
        takes = [name for name, offers in problem.offers.items() if all(offer.by_row for offer in offers.values())]
        if takes != list(problem.offers) or len(takes) != 1:
            raise ConfigError(
                f"`schedule.granularity=row` needs one compressor that takes amounts per row, got "
                f"{', '.join(problem.offers)}; use compressor=magnitude, or granularity=matrix"
            )
        if self.estimate is EstimateBy.measured or self.bits or self.bytes:
            raise ConfigError(
                "`schedule.granularity=row` takes estimates of one pass and `schedule.targets`, got "
                f"estimate={self.estimate.name}, bits={self.bits}, bytes={self.bytes}; drop these"
            )


def raise_floor(floor: Array, kept: Treatment | None, amount: float) -> Array:
    """What is taken from a component after a round, `[unit]`."""
    if kept is None:
        return floor
    return np.array(kept.rows) if kept.rows else np.full_like(floor, amount)
