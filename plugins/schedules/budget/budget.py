"""The default schedule: one backward pass estimates every option, then corrections improve the plan."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from compressor.contracts import Compressor, EstimableMetric, KeepRequest, Metric, Offer, Problem, Schedule, Search
from compressor.errors import ConfigError

from ..targets import check_any, check_metric, check_problem, check_shrinks
from .discrete import make_choices
from .limits import Unit, check_limits, read_limits
from .questions import Questions
from .round import BudgetRound


class EstimateBy(enum.Enum):
    """How costs are estimated: by one backward pass for all options, or by a trial for each option."""

    one_pass = "one_pass"
    measured = "measured"


class Granularity(enum.Enum):
    """Whether each matrix or each row has its own amount."""

    matrix = "matrix"
    row = "row"


@dataclass
class Budget(Schedule):
    """The plan of least cost within a budget, from estimated costs, corrected by measured trials.

        minimise Σ_c cost_c(option_c)   subject to   Σ_c size_c(option_c) ≤ budget

    The first plan uses costs at the start of the round, estimated on more and more prefixes until the plan settles.
    Amounts of a range share one slope on their lower convex hulls, fixed options are a multiple-choice knapsack, and
    both together are a mixed integer program. Then the best plan with one option or amount for all components is tried.
    Then up to `corrections` times, costs are estimated at the current plan and solved within a trust region (amounts
    ± 0.1, or one option up or down). The new plan is accepted if it is better on the search prefixes by more than a
    standard error; else the trust region is halved.

    `objective` is a metric that can be estimated: `kl` is the most robust, `margin_noise` is closest to the FDT.
    `estimate=measured` runs a trial for each option and takes any metric. `targets` are cumulative mean amounts, one
    round each. In their place `size` limits the exported weight files: `50%` of the base's, `2.8MB` (10^6 bytes) or
    `3MiB` (2^20). `bytes` is the same as a number, and `bits` limits the mean bits per weight of components, scales
    counted. A budget is never exceeded. `granularity=row` gives every output row its own amount.

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
    size: str | None = None

    def ranks_by(self) -> tuple[str, ...]:
        return (self.objective,)

    def limits_files(self) -> bool:
        return self.bytes is not None or self.size is not None

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        check_any(compressors, self.name)
        self._check_numbers()
        sizes = {"bytes": self.bytes, "size": self.size, "bits": self.bits}
        for name, value in sizes.items():
            if value is not None:
                check_shrinks(compressors, f"schedule.{name}={value}", files=name != "bits")
        if self.estimate is EstimateBy.one_pass and self.objective in metrics:
            self._check_estimable([name for name, metric in metrics.items() if issubclass(metric, EstimableMetric)])
        if self.granularity is Granularity.row and len(compressors) > 1:
            raise self._refuse_rows(compressors)

    def search(self, problem: Problem) -> Search:
        self._check(problem)
        by_row, measured = self.granularity is Granularity.row, self.estimate is EstimateBy.measured
        floor = {c.name: np.zeros(c.shape[0] if by_row else 1) for c in problem.components}
        limits = read_limits(problem, self.targets, self.bits, self.bytes, self.size)
        for limit in limits:
            choices = make_choices(problem, floor, by_row)
            on_disk = limit.unit is Unit.bytes
            planning = BudgetRound(Questions(choices, self.objective, limit.in_bits, on_disk, measured, by_row), limit)
            plan = yield from planning.run(self.corrections)
            singles = {self.objective: planning.singles}
            notes, last = tuple(planning.notes), limit is limits[-1]
            yield from KeepRequest(plan, limit.target, notes, most_bytes=limit.most_bytes, singles=singles, last=last)
            floor = {c.name: choices.read(c, plan.get(c.name)) for c in problem.components}

    def _check_numbers(self) -> None:
        """Raise ConfigError for options that fit no model, or not one another."""
        if self.corrections < 0:
            raise ConfigError(f"`schedule.corrections` must not be negative, got {self.corrections}; 0 makes none")
        check_limits(self.targets, self.bits, self.bytes, self.size)
        given = {"bits": self.bits, "bytes": self.bytes, "size": self.size}
        sized = [f"{name}={value}" for name, value in given.items() if value is not None]
        if self.granularity is Granularity.row and (self.estimate is EstimateBy.measured or sized):
            raise ConfigError(
                "`schedule.granularity=row` needs estimate=one_pass and `schedule.targets`, got "
                f"{', '.join([f'estimate={self.estimate.name}', *sized])}; drop these"
            )

    def _check_estimable(self, estimable: Iterable[str]) -> None:
        """Raise ConfigError if one pass does not estimate the objective, but only those that are `estimable`."""
        known = sorted(estimable)
        if self.objective not in known:
            raise ConfigError(
                f"`schedule.objective={self.objective}` cannot be estimated by one pass, "
                f"{', '.join(known) or 'none of those configured'} can; choose one of these, or use "
                "schedule.estimate=measured"
            )

    def _check(self, problem: Problem) -> None:
        """Raise ConfigError for options that do not fit the problem."""
        check_problem(problem, self.name)
        self._check_numbers()
        check_metric(problem, self.objective, "objective")
        if self.estimate is EstimateBy.one_pass:
            self._check_estimable(problem.estimable)
        if self.granularity is Granularity.row:
            without = {n for offers in problem.offers.values() for n, o in offers.items() if not takes_rows(o)}
            if len(problem.offers) != 1 or without:
                mixed = next((c.name for c in problem.components if c.name in without and c.shape[1] == 1), None)
                raise self._refuse_rows(problem.offers, mixed)

    def _refuse_rows(self, compressors: Iterable[str], mixed: str | None = None) -> ConfigError:
        """The error for amounts per row. `mixed` is a fused component whose rows differ in length."""
        fused = f", and `{mixed}` fuses matrices with different row lengths" if mixed else ""
        return ConfigError(
            f"`schedule.granularity=row` needs one compressor that takes amounts per row, got "
            f"{', '.join(compressors)}{fused}; use compressor=magnitude, or granularity=matrix"
            f"{', or components.fuse=false' if mixed else ''}"
        )


def takes_rows(offer: Offer) -> bool:
    """Whether every row may have an amount of its own, out of a range."""
    return offer.by_row and offer.is_range
