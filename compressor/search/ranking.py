"""Ranks trials by their scores. Torch-free."""

from collections.abc import Sequence

import numpy as np

from compressor.contracts import Best, BestRequest, Better, Scores


def choose_best(request: BestRequest, better: Better, scores: Sequence[Scores | None]) -> Best:
    """The best of the trials that have scores; in a tie the lower index first, NaN last."""
    values = {
        index: better.sign * found[request.metric].statistic(request.statistic)
        for index, found in enumerate(scores)
        if found is not None
    }
    order = sorted(values, key=lambda index: (np.isnan(values[index]), -values[index], index))
    return Best(tuple(order[: request.count]), tuple(scores))
