"""Ranks trials by their scores. Torch-free."""

from collections.abc import Sequence

import numpy as np

from compressor.contracts import Best, BestRequest, Better, Scores
from compressor.errors import PluginError

STATISTICS = ("mean", "min", "p25", "median", "p75", "max")
"""The statistics of a score by which trials can be ranked."""


def check_request(request: BestRequest) -> None:
    """Raise PluginError for a request with invalid or inconsistent fields."""
    if request.count < 1:
        raise PluginError(f"`count` of a BestRequest must be at least 1, got {request.count}; ask for one")
    if request.statistic not in STATISTICS:
        raise PluginError(
            f"`statistic` must be one of {', '.join(STATISTICS)}, got `{request.statistic}`; ask for one of these"
        )
    if request.bounds and len(request.bounds) != len(request.trials):
        raise PluginError(
            f"`bounds` must have one for each of {len(request.trials)} trials, got {len(request.bounds)}; None is one"
        )


def choose_best(request: BestRequest, better: Better, scores: Sequence[Scores | None]) -> Best:
    """The best of the trials that have scores; in a tie the lower index first, NaN last."""
    values = {
        index: better.sign * found[request.metric].statistic(request.statistic)
        for index, found in enumerate(scores)
        if found is not None
    }
    order = sorted(values, key=lambda index: (np.isnan(values[index]), -values[index], index))
    return Best(tuple(order[: request.count]), tuple(scores))
