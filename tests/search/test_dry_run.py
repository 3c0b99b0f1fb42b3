"""The dry run refuses what no run could answer."""

from collections.abc import Callable
from typing import Any

import pytest

from compressor.contracts import (
    Better,
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


REQUESTS: dict[str, tuple[str, Callable[[Problem], list[Any]]]] = {
    "unknown_component": ("no component of the problem", lambda p: [KeepRequest({"lm_head": Treatment("prune", 0.5)})]),
    "gives_back": ("cumulative", lambda p: [KeepRequest(treat_all(p, 0.75)), KeepRequest(treat_all(p, 0.5))]),
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
