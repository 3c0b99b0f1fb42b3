"""Costs of the current round: trials, forward passes, cached options, and trials left out by the approximation."""

import time
from dataclasses import dataclass, field


@dataclass
class ApproximationTotals:
    """Counts of the approximate mode: requests (`questions`), their trials, measured trials, and trials left out.

    `violations` are measured trials that were better than their bound. Of the trials left out, `audited` were measured
    anyway, and `missed` of these are among the best.
    """

    questions: int = 0
    trials: int = 0
    measured: int = 0
    screened: int = 0
    skipped: int = 0
    violations: int = 0
    audited: int = 0
    missed: int = 0

    def describe(self) -> list[str]:
        """A sentence for the user; none if there was no request."""
        if not self.questions:
            return []
        return [
            f"Approximate search: {self.measured} of {self.trials} trials were measured on all prefixes; left out by "
            f"the screen: {self.screened}, by bounds: {self.skipped}; trials that were better than their bounds: "
            f"{self.violations}; left-out trials that the audit measured: {self.audited}, of these among the best: "
            f"{self.missed}."
        ]


@dataclass
class Ledger:
    """Costs of the current `round`, with `prefixes` search prefixes.

    `trials` is the number of scored plans, `passes` the cost in forward passes over all search prefixes, `cached` the
    number of estimates from an earlier run.
    """

    prefixes: int
    round: int = 1
    trials: int = 0
    passes: float = 0.0
    cached: int = 0
    approximation: ApproximationTotals = field(default_factory=ApproximationTotals)
    began: float = field(default_factory=time.monotonic)

    def spend(self, passes: float, start: int = 0, stop: int | None = None) -> None:
        """Add forward passes over the search prefixes from `start` to `stop`."""
        self.passes += passes * len(range(self.prefixes)[start:stop]) / self.prefixes

    def describe(self) -> list[str]:
        """Sentences for the user about what was not measured in this round."""
        return [*self.approximation.describe(), *describe_cached(self.cached)]

    def open_round(self, number: int) -> None:
        """Reset all counts."""
        self.round, self.trials, self.passes, self.cached = number, 0, 0.0, 0
        self.approximation, self.began = ApproximationTotals(), time.monotonic()


def describe_cached(count: int) -> list[str]:
    """A note on estimates that were read from the cache; none if there were none."""
    if not count:
        return []
    return [
        f"The estimates of {count} options came from the cache, computed by an earlier run with the same model, "
        "compressors and data. They count as no trials and no passes. sweep.cache=false computes them again."
    ]
