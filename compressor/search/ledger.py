"""What approximate answers saved, and what their audit found: totals of a round, and the sentence that tells them."""

from dataclasses import dataclass


@dataclass
class Savings:
    """How many trials were asked about, measured on all prefixes, and dropped by each saving before that.

    `violations` are measured trials that beat the bound they came with. Of the dropped ones `audited` were measured
    all the same, and `missed` of these would have been among the best.
    """

    questions: int = 0
    trials: int = 0
    measured: int = 0
    screened: int = 0
    skipped: int = 0
    raced: int = 0
    violations: int = 0
    audited: int = 0
    missed: int = 0

    def describe(self) -> str | None:
        """A sentence for a person; None where nothing was asked."""
        if not self.questions:
            return None
        return (
            f"Approximate search: {self.measured} of {self.trials} trials were measured on all prefixes; dropped by "
            f"the screen: {self.screened}, by bounds: {self.skipped}, by races: {self.raced}; trials that beat their "
            f"bounds: {self.violations}; dropped trials that the audit measured: {self.audited}, of these among the "
            f"best: {self.missed}."
        )
