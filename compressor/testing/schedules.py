"""The contract suite of schedules."""

import copy

import pytest

from compressor.contracts import Better, Dialogue, KeepRequest, Problem, Schedule
from compressor.errors import CompressorError, PluginError
from compressor.plugins import installed
from compressor.testing.plugin_contract import PluginContract, randomness_untouched, refuse_torch
from compressor.testing.problems import DryRun, make_problem

COMPRESSORS = (("prune",), ("round",), ("prune", "round"))


class ScheduleContract(PluginContract):
    """The promises of a `Schedule`, tested by dry runs without a model, with at most `requests` requests.

    A schedule may refuse a problem by CompressorError before its first request. If it refuses all `problems`, override
    that method.
    """

    contract = Schedule
    requests: int = 1000

    def problems(self, plugin: Schedule) -> list[Problem]:
        """With a compressor that offers a range, with one that offers levels, and with both; metrics of `ranks_by`."""
        metrics = installed().metrics
        better = {name: metrics[name].better if name in metrics else Better.LOWER for name in plugin.ranks_by()}
        return [make_problem(compressors, better) for compressors in COMPRESSORS]

    def dry_runs(self, plugin: Schedule, proof_shift: float = 0.0) -> list[DryRun]:
        """Dry runs of all problems that the schedule does not refuse; raises PluginError for an invalid request."""
        found = []
        for problem in self.problems(plugin):
            try:
                Dialogue(plugin, problem)
            except PluginError:
                raise
            except CompressorError:
                continue
            run = DryRun(problem, proof_shift)
            run.play(plugin, self.requests)
            found.append(run)
        assert found, f"schedule `{plugin.name}` refuses every problem; override `problems` with one that it takes"
        return found

    def test_ends_and_keeps_a_plan(self, plugin: Schedule) -> None:
        """The schedule ends after a limited number of requests and keeps a plan. It only uses components, amounts and
        metrics that exist, and kept amounts never decrease."""
        for run in self.dry_runs(plugin):
            kept = [request for request in run.requests if isinstance(request, KeepRequest)]
            assert kept, f"no plan was kept in {len(run.requests)} requests"

    def test_is_a_function_of_problem_and_answers(self, plugin: Schedule) -> None:
        """The same problem and answers give the same requests. Options and global generators do not change."""
        options = copy.deepcopy(plugin)
        with randomness_untouched():
            first = self.dry_runs(plugin)
        second = self.dry_runs(plugin)
        assert [r.requests for r in first] == [r.requests for r in second], "the second run asks for something else"
        assert plugin == options, "an option was changed"

    def test_goes_on_from_its_answers(self, plugin: Schedule) -> None:
        """A new dialogue that is given the first answers continues with the next request, so a run can be resumed."""
        for run in self.dry_runs(plugin):
            expected = [*run.requests, None]
            for count in range(0, len(expected), 1 + len(expected) // 20):
                dialogue = Dialogue(plugin, run.problem, run.answers[:count])
                assert dialogue.propose() == expected[count], f"after {count} answers it continues differently"

    def test_decides_nothing_on_proof_prefixes(self, plugin: Schedule) -> None:
        """Scores on proof prefixes may be requested, but do not affect any other request."""
        first, second = self.dry_runs(plugin), self.dry_runs(plugin, proof_shift=0.5)
        assert [r.requests for r in first] == [r.requests for r in second], "a decision depends on proof prefixes"

    def test_needs_no_torch(self, plugin: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
        """A search runs where torch cannot be imported."""
        refuse_torch(monkeypatch)
        self.dry_runs(plugin)
