"""The protocol for answering a schedule's requests: one method for each kind of request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.contracts.requests import (
        Best,
        BestRequest,
        CountRequest,
        Estimate,
        EstimateRequest,
        KeepRequest,
        ScoreRequest,
        SizeRequest,
        ValuesRequest,
    )
    from compressor.contracts.types import Scores


class Oracle(Protocol):
    """Answers requests: a run measures the answers, a forecast predicts them, a dry run makes them up."""

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        """The scores of each trial, in order."""
        ...

    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        """For each trial, in order: metric -> values per sequence `[sequence]`."""
        ...

    def best(self, request: BestRequest) -> Best:
        """The best trials."""
        ...

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """Component -> the estimated effect of each of its options."""
        ...

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        """Component -> the stored bits of each of its options."""
        ...

    def counts(self, request: CountRequest) -> dict[str, list[int]]:
        """Component -> for each threshold, how many of its weights have at most that importance."""
        ...

    def keep(self, request: KeepRequest) -> dict[str, float]:
        """Component -> its amount after the plan was applied to the model."""
        ...
