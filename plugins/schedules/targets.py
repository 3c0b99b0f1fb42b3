"""Checks that schedules share: of the metric, and of `schedule.targets` against the offers of one compressor."""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Better, Compressor, Offer, Problem, Scores, Storage, Treatment
from compressor.errors import ConfigError, suggest

Vector = NDArray[np.float64]
DEFAULT_TARGET = 0.5
MOST_BITS = 64
"""The bits of the widest number that weights are stored in."""


class Statistic(enum.Enum):
    """The statistic over prefixes that ranks trials. p75 of the FDT is the paper's FDT75."""

    mean = "mean"
    p75 = "p75"
    median = "median"
    p25 = "p25"

    def read(self, scores: Scores, metric: str) -> float:
        """This statistic of a metric."""
        return scores[metric].statistic(self.value)


@dataclass(frozen=True)
class Span:
    """The range of amounts [low, high] that one compressor offers for each component, and the parameter counts.

    All vectors are `[component]`, in the order of the problem.
    """

    compressor: str
    names: tuple[str, ...]
    parameters: Vector
    low: Vector
    high: Vector

    def mean(self, amounts: Vector) -> float:
        """sum_c parameters_c amount_c / sum_c parameters_c"""
        return float(self.parameters @ amounts / self.parameters.sum())

    def plan(self, amounts: Vector) -> dict[str, Treatment]:
        """Every component at its amount. Amounts outside of [0, 1] by rounding are clipped."""
        exact = np.clip(amounts, 0.0, 1.0).tolist()
        return {name: Treatment(self.compressor, amount) for name, amount in zip(self.names, exact, strict=True)}

    def read(self, answer: Mapping[str, float]) -> Vector:
        """The answer to a KeepRequest as a vector."""
        return np.array([answer[name] for name in self.names], dtype=np.float64)

    def check_targets(self, targets: Sequence[float]) -> list[float]:
        """The targets, or the default if there are none; raises ConfigError for one that is out of reach."""
        lowest, highest = self.mean(self.low), self.mean(self.high)
        for target in check_order(targets):
            if not lowest - Offer.TOLERANCE <= target <= highest + Offer.TOLERANCE:
                raise ConfigError(
                    f"`schedule.targets` has {target:g}, {self.compressor} offers [{lowest:zg}, {highest:zg}] "
                    "over all components; give a mean amount in that range"
                )
        return list(targets) or check_order([max(lowest, min(DEFAULT_TARGET, highest))])


def check_order(targets: Sequence[float]) -> list[float]:
    """Cumulative amounts, each in (0, 1] and above the previous one; raises ConfigError."""
    for before, target in zip([0.0, *targets], targets, strict=False):
        if not (math.isfinite(target) and 0.0 < target <= 1.0):
            raise ConfigError(
                f"`schedule.targets` must be in (0, 1], got {target:g}; give the share of bits to take away"
            )
        if target <= before:
            raise ConfigError(f"`schedule.targets` must increase, got {target:g} after {before:g}; they are cumulative")
    return list(targets)


def check_amount(amount: float) -> None:
    """Raises ConfigError for a value that `schedule.amount` cannot have."""
    if not 0 <= amount <= 1:
        raise ConfigError(f"`schedule.amount` must be in [0, 1], got {amount:g}; give the share of bits to take away")


def check_metric(problem: Problem, metric: str, option: str = "ranker") -> Better:
    """Which values of the metric in `schedule.OPTION` are better; raises ConfigError if it is not configured."""
    if metric not in problem.better:
        raise ConfigError(f"unknown metric `{metric}` in `schedule.{option}`; {suggest(metric, problem.better)}")
    return problem.better[metric]


def check_problem(problem: Problem, schedule: str) -> None:
    """Raises ConfigError if there is no component or no compressor."""
    if not problem.components:
        raise ConfigError("no component is selected, at least one is needed; loosen `components.include` or `.exclude`")
    check_any(problem.offers, schedule)


def check_any(compressors: Iterable[str], schedule: str) -> None:
    """Raises ConfigError if no compressor is configured."""
    if not list(compressors):
        raise ConfigError(f"schedule `{schedule}` needs a compressor, none is configured; set `compressor`")


def check_single(compressors: Iterable[str], schedule: str) -> None:
    """Raises ConfigError unless exactly one compressor is configured."""
    names = list(compressors)
    check_any(names, schedule)
    if len(names) > 1:
        raise ConfigError(
            f"schedule `{schedule}` takes one compressor, configured are {', '.join(names)}; "
            f"choose one, for example `compressor={names[0]}`"
        )


def check_shrinks(compressors: Mapping[str, Compressor], size: str, files: bool) -> None:
    """Raises ConfigError if no compressor can help to keep the limit `size`, such as `schedule.bits=4`.

    The limit is that of the exported `files`, or of packed bits.
    """
    helpful = {Storage.integers, None} if files else {Storage.integers, Storage.other, None}
    kinds = [compressor.stored_as for compressor in compressors.values()]
    if not kinds or not helpful.isdisjoint(kinds):
        return
    names, fix = ", ".join(compressors), "schedule.targets"
    if Storage.other in kinds:
        fact, fix = f"the export saves the weights of {names} dense, so the files keep their size", "schedule.bits"
    else:
        fact = f"{names} only prunes: pruned weights are stored dense and keep their size"
    raise ConfigError(f"`{size}` cannot be reached: {fact}; use compressor=[int8,int4], or {fix} in place of a size")


def check_bits(bits: float) -> None:
    """Raises ConfigError for a value that `schedule.bits` cannot have."""
    if not 0 < bits <= MOST_BITS:
        raise ConfigError(
            f"`schedule.bits` must be above 0 and at most {MOST_BITS}, got {bits:g}; give the mean bits of a weight, "
            "such as 4.5"
        )


def choose_offers(problem: Problem, schedule: str) -> tuple[str, Mapping[str, Offer]]:
    """The one configured compressor and its offers; raises ConfigError if there is not exactly one."""
    check_problem(problem, schedule)
    check_single(problem.offers, schedule)
    ((name, offers),) = problem.offers.items()
    return name, offers


def choose_span(problem: Problem, schedule: str) -> Span:
    """The ranges of the one compressor; raises ConfigError if it offers fixed levels."""
    compressor, offers = choose_offers(problem, schedule)
    for name, offer in offers.items():
        if not offer.is_range:
            raise ConfigError(
                f"schedule `{schedule}` needs a range of amounts, {compressor} offers {offer} for `{name}`; "
                "choose a compressor that prunes, or another schedule"
            )
    return make_span(compressor, problem, [(offers[c.name].low, offers[c.name].high) for c in problem.components])


def make_span(compressor: str, problem: Problem, ranges: Sequence[tuple[float, float]]) -> Span:
    """The ranges (low, high), one for each component of the problem."""
    names = tuple(component.name for component in problem.components)
    parameters = np.array([component.parameters for component in problem.components], dtype=np.float64)
    low, high = np.array(ranges, dtype=np.float64).T
    return Span(compressor, names, parameters, low, high)
