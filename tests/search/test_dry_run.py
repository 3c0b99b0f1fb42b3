"""The dry run refuses what no run could answer."""

from collections.abc import Callable
from typing import Any

import pytest

from compressor.contracts import (
    Better,
    CountRequest,
    KeepRequest,
    Plan,
    Problem,
    Schedule,
    ScoreRequest,
    Search,
    Treatment,
)
from compressor.errors import PluginError
from compressor.search.dry_run import DryRun
from compressor.testing.problems import make_problem


def treat_all(problem: Problem, amount: float = 0.5, compressor: str = "prune") -> Plan:
    return {component.name: Treatment(compressor, amount) for component in problem.components}


def treat_rows(problem: Problem, compressor: str = "prune", more: int = 0) -> Plan:
    """Half of everything, given row by row, for `more` rows than there are."""
    return {c.name: Treatment(compressor, 0.5, rows=(0.5,) * (c.shape[0] + more)) for c in problem.components}


REQUESTS: dict[str, tuple[str, Callable[[Problem], list[Any]]]] = {
    "unknown_component": ("not a component", lambda p: [KeepRequest({"lm_head": Treatment("prune", 0.5)})]),
    "unknown_metric": ("are asked for, configured are", lambda p: [ScoreRequest([{}], ("sdtm",))]),
    "not_offered": ("offered are", lambda p: [KeepRequest(treat_all(p, 0.6, "round"))]),
    "rows_not_offered": ("one amount per matrix", lambda p: [KeepRequest(treat_rows(p, "round"))]),
    "too_few_rows": ("rows that do not exist", lambda p: [KeepRequest(treat_rows(p, more=-1))]),
    "gives_back": ("cumulative", lambda p: [KeepRequest(treat_all(p, 0.75)), KeepRequest(treat_all(p, 0.5))]),
    "unsorted": ("sorted thresholds", lambda p: [CountRequest("prune", (0.5, 0.1))]),
    "endless": ("must come to an end", lambda p: [ScoreRequest([{}], ("kl",))] * 10),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_that_no_run_could_answer_is_refused(case: str) -> None:
    message, ask = REQUESTS[case]

    class Asks(Schedule):
        name = "asks"

        def search(self, problem: Problem) -> Search:
            yield from (request for request in ask(problem))

    with pytest.raises(PluginError, match=message):
        DryRun(make_problem(["prune", "round"], {"kl": Better.LOWER})).play(Asks(), most=8)
