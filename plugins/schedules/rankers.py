"""How trials are ranked: by a metric and one of its statistics over prefixes."""

import enum

from compressor.contracts import Better, Problem
from compressor.errors import ConfigError, suggest


class Statistic(enum.Enum):
    """The statistic over prefixes that ranks trials. p75 of the FDT is the paper's FDT75."""

    mean = "mean"
    p75 = "p75"
    median = "median"
    p25 = "p25"


def check_metric(problem: Problem, metric: str, option: str = "ranker") -> Better:
    """Which values of the metric in `schedule.OPTION` are better; raises ConfigError if it is not configured."""
    if metric not in problem.better:
        raise ConfigError(f"unknown metric `{metric}` in `schedule.{option}`; {suggest(metric, problem.better)}")
    return problem.better[metric]
