"""By what trials are ranked: a metric, and one of its aggregates over prefixes."""

import enum

from compressor.contracts import Better, Problem
from compressor.errors import ConfigError, suggest


class Statistic(enum.Enum):
    """Which aggregate over prefixes a search reads; p75 of the FDT is what the paper calls FDT75."""

    mean = "mean"
    p75 = "p75"
    median = "median"
    p25 = "p25"


def check_ranker(problem: Problem, ranker: str) -> Better:
    """Which way `schedule.ranker` points; raises ConfigError for a metric that is not configured."""
    if ranker not in problem.better:
        raise ConfigError(f"unknown metric `{ranker}` in `schedule.ranker`; {suggest(ranker, problem.better)}")
    return problem.better[ranker]
