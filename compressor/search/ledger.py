"""How many trials the approximate mode left out in a round, and what its audit found."""

from dataclasses import dataclass


@dataclass
class ApproximationTotals:
    """How many trials were asked about and measured, and how many were dropped by the screen or skipped by bounds.

    `violations` are measured trials that beat the bound they came with. Of the dropped ones `audited` were measured
    all the same, and `missed` of these would have been among the best.
    """

    questions: int = 0
    trials: int = 0
    measured: int = 0
    screened: int = 0
    skipped: int = 0
    violations: int = 0
    audited: int = 0
    missed: int = 0

    def describe(self) -> str | None:
        """A sentence for a person; None where nothing was asked."""
        if not self.questions:
            return None
        return (
            f"Approximate search: {self.measured} of {self.trials} trials were measured on all prefixes; dropped by "
            f"the screen: {self.screened}, by bounds: {self.skipped}; trials that beat their bounds: "
            f"{self.violations}; dropped trials that the audit measured: {self.audited}, of these among the best: "
            f"{self.missed}."
        )
