"""What a run is expected to cost: counts are those of the run, what cannot fit is refused, and nothing else is."""

import dataclasses
import itertools
import json
import logging
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compressor.artifacts import disk_space
from compressor.artifacts.checked_arrays import write_arrays
from compressor.artifacts.run_record import Record, RunCost, RunCostRecord
from compressor.commands import cost
from compressor.commands.cost import WorkCounter, count_work, fold_rows
from compressor.commands.run import Run
from compressor.commands.stopping import Stopped
from compressor.contracts import (
    BestRequest,
    Better,
    Component,
    EstimateRequest,
    KeepRequest,
    Offer,
    Prefixes,
    Problem,
    Schedule,
    ScoreRequest,
    Search,
    SizeRequest,
    Treatment,
    ValuesRequest,
)
from compressor.errors import CannotFit, ConfigError, PluginError
from compressor.recovery import run_trainer, training_state
from compressor.report import read_report
from compressor.report.formatting import describe_cost, describe_expected_cost
from compressor.report.run_page import make_page
from compressor.resources import Memory, measure_folder
from compressor.settings import ComponentSettings, ExportSettings, Settings, SweepMode, SweepSettings
from compressor.testing.problems import make_problem
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.recovery.finetune import Finetune
from compressor_plugins.schedules.beam.beam import Beam
from compressor_plugins.schedules.budget.budget import Budget, EstimateBy, Granularity
from compressor_plugins.schedules.evolution.evolution import Evolution
from compressor_plugins.schedules.fdt_allocation import FdtAllocation
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.plan import ReplayedPlan
from compressor_plugins.schedules.uniform import Uniform
from tests.support.runs import make_settings, run
from tests.support.slow import rarely

BOTH = {"kl": Better.LOWER, "fdtm": Better.HIGHER}
GIB = 1 << 30
PLENTY = Memory(GIB, GIB, 1000 * GIB)
FEW = ComponentSettings(include=[r"layers\.[01]\..*(q_proj|down_proj)"])


def settings_of(schedule: Schedule, *compressors: Any, **changes: Any) -> Settings:  # noqa: ANN401 - as make_settings
    dense = ExportSettings(format="dense", verify=False)
    return make_settings(schedule, *compressors, **{"components": FEW, "export": dense, **changes})


def count(schedule: Schedule, problem: Problem) -> WorkCounter:
    work = WorkCounter(problem)
    assert count_work(work, schedule, fuses=False)
    return work


def make_large_problem(*offers: Offer) -> Problem:
    """A model of 7 billion parameters: 32 layers of 7 matrices."""
    wide = {"gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}
    kinds = ["query", "key", "value", "output", *wide]
    components = [
        Component(f"layers.{layer}.{kind}", kind, layer, wide.get(kind, (4096, 4096)), 16)
        for layer in range(32)
        for kind in kinds
    ]
    names = {str(index): {c.name: offer for c in components} for index, offer in enumerate(offers)}
    return Problem(components, names, BOTH, 64, estimable=frozenset(["kl"]), prefixes=64)


EXACT = {
    "uniform": settings_of(Uniform([0.2, 0.4])),
    "global": settings_of(GlobalThreshold([0.2, 0.4])),
    "fdt_allocation": settings_of(FdtAllocation([0.2, 0.4])),
    "fdt_allocation by kl": settings_of(FdtAllocation([0.3], ranker="kl")),
    "beam": settings_of(Beam(width=2), Int8()),
    "budget without corrections": settings_of(Budget([0.4], corrections=0)),
    "budget by trials": settings_of(Budget([0.4], estimate=EstimateBy.measured, corrections=0)),
}


@pytest.mark.parametrize("case", ["fdt_allocation", *rarely(case for case in EXACT if case != "fdt_allocation")])
def test_counts_are_those_of_the_run(tmp_path: Path, case: str) -> None:
    record = run(tmp_path, EXACT[case])
    assert record.expense is not None and record.expense.actual is not None
    forecast, actual = record.expense.forecast, record.expense.actual
    assert (forecast.trials, forecast.passes) == (actual.trials, pytest.approx(actual.passes))
    assert not forecast.at_least
    lines = tmp_path / "scores.jsonl"
    if case in ("beam", "fdt_allocation"):
        assert actual.trials == len(lines.read_text().splitlines()) > 0
    assert 0 <= forecast.disk_bytes - actual.disk_bytes <= 0.1 * actual.disk_bytes + cost.SMALL_FILES
    assert actual.disk_bytes == pytest.approx(sum(p.stat().st_size for p in tmp_path.rglob("*.*")), rel=0.1)


@pytest.mark.slow
def test_what_depends_on_answers_is_about_right(tmp_path: Path) -> None:
    schedule = Evolution([0.4], generations=5, offspring=5, survivors=[2, 1], tokens=[32, 96])
    record = run(tmp_path, settings_of(schedule, components=ComponentSettings()))
    assert record.expense is not None and record.expense.actual is not None
    forecast, actual = record.expense.forecast, record.expense.actual
    assert 1 / 1.5 < forecast.trials / actual.trials < 1.5
    assert 1 / 1.5 < forecast.passes / actual.passes < 1.5


def test_corrections_are_counted_at_their_most(tmp_path: Path) -> None:
    record = run(tmp_path, settings_of(Budget([0.4], corrections=3)))
    assert record.expense is not None and record.expense.actual is not None
    forecast, actual = record.expense.forecast, record.expense.actual
    # one walk back over the base, then for each correction two, and its score; on top the scores of the first plan and
    # of equal amounts
    assert (forecast.trials, forecast.passes) == (5, 4 + 3 * 2 * 4 + 5)
    assert actual.trials <= forecast.trials and actual.passes <= forecast.passes


@pytest.mark.slow
def test_an_approximate_search_costs_no_more_than_its_forecast(tmp_path: Path) -> None:
    evaluator = SweepSettings(mode=SweepMode.approximate, audit=0)
    record = run(tmp_path, settings_of(Beam(width=2), Int8(), sweep=evaluator))
    assert record.expense is not None and record.expense.actual is not None
    assert record.expense.actual.passes <= record.expense.forecast.passes


@dataclass
class Asking(Schedule):
    """Asks for what it is given, then keeps nothing."""

    name: ClassVar[str] = "asking"

    requests: list[Any]

    def search(self, problem: Problem) -> Search:
        for request in self.requests:  # noqa: UP028 - a list takes no answers
            yield request
        yield KeepRequest({})


NAMES = [component.name for component in make_problem(["prune"], BOTH).components]
FIRST, LAST = ({name: Treatment("prune", 0.5)} for name in (NAMES[0], NAMES[-1]))
COSTS = {
    "alone": (ScoreRequest([LAST], ("kl",)), 1, 1.0),
    "some prefixes": (ScoreRequest([FIRST], ("kl",), stop=2), 1, 0.25),
    "proof": (ScoreRequest([FIRST], ("kl",), Prefixes.PROOF), 1, 0.0),
    "together": (ScoreRequest([FIRST, LAST], ("kl",)), 2, 2.0),
    "values": (ValuesRequest([FIRST, {}], ("kl",)), 2, 2.0),
    "best": (BestRequest([FIRST, LAST], "kl", 1), 2, 2.0),
    "estimate at the base": (EstimateRequest({NAMES[0]: [None]}, "kl"), 0, 4.0),
    "estimate at a plan": (EstimateRequest({NAMES[0]: [None]}, "kl", FIRST, 4, 8), 0, 4.0),
    "measured": (EstimateRequest({NAMES[0]: [None]}, "kl", measured=True), 2, 2.0),
    "sizes": (SizeRequest({NAMES[0]: [None]}), 0, 0.0),
}


@pytest.mark.parametrize("case", COSTS)
def test_what_each_request_costs(case: str) -> None:
    request, trials, passes = COSTS[case]
    ledger = count(Asking([request]), make_problem(["prune"], BOTH)).ledger
    assert (ledger.trials, ledger.passes) == (trials, passes)


def test_treated_weights_are_counted() -> None:
    """A component of 64 weights: in a trial, as an option beside None, and kept."""
    request = SizeRequest({NAMES[0]: [None, FIRST[NAMES[0]]]})
    work = count(Asking([ScoreRequest([FIRST, {}], ("kl",)), request]), make_problem(["prune"], BOTH))
    assert (work.treated, work.changed, work.kept) == (64 + 2 * 64, 64, 0)


LARGE = {
    "fdt_allocation": (FdtAllocation([0.2, 0.35, 0.45, 0.55, 0.6]), [Offer()], 2245),
    "evolution": (Evolution([0.5]), [Offer()], 1601),
    "budget": (Budget([0.5]), [Offer()], 8),
    "budget by row": (Budget([0.5], granularity=Granularity.row), [Offer(by_row=True)], 8),
    "beam": (Beam(), [Offer(levels=(0.5,))], None),
}


@pytest.mark.parametrize("case", ["budget", "beam", *rarely(["fdt_allocation", "evolution", "budget by row"])])
def test_a_dry_run_is_quick_or_stopped(case: str) -> None:
    schedule, offers, trials = LARGE[case]
    work, began = WorkCounter(fold_rows(make_large_problem(*offers))), time.monotonic()
    is_whole = count_work(work, schedule, fuses=False, seconds=0.5 if trials is None else 60)
    if trials is None:
        assert is_whole is False and work.ledger.trials > 1000
        assert time.monotonic() - began < 5  # on a busy machine; half a second and one more request
    else:
        assert is_whole and work.ledger.trials == trials


def test_folding_rows_keeps_every_weight() -> None:
    problem = make_large_problem(Offer())
    for before, after in zip(problem.components, fold_rows(problem).components, strict=True):
        assert after == replace(before, shape=after.shape)
        assert (after.parameters, after.shape[0]) == (before.parameters, 8)


@dataclass
class Choking(Uniform):
    """Cannot live with round numbers."""

    name: ClassVar[str] = "choking"

    def search(self, problem: Problem) -> Search:
        name = problem.components[0].name
        (scores,) = yield ScoreRequest([{name: Treatment("magnitude", 0.5)}], ("kl",))
        kl = scores["kl"].mean
        if kl == scores["kl"].low:
            raise ZeroDivisionError("no spread")
        yield KeepRequest({name: Treatment("magnitude", 0.5)})


def test_a_schedule_that_chokes_on_made_up_answers_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "compressor"):
        record = run(tmp_path, settings_of(Choking()))
    assert record.status == "done" and record.expense is None
    (said,) = [line.message for line in caplog.records if "cannot be forecast" in line.message]
    assert said.startswith("the cost of schedule `choking` cannot be forecast: schedule `choking` of ")
    assert "failed in `search`: ZeroDivisionError: no spread (" in said and "test_cost.py:" in said
    assert json.loads((tmp_path / "report.json").read_text())["expense"] is None


def test_a_dry_run_leaves_the_schedule_as_it_is() -> None:
    schedule = Asking([])
    before = dataclasses.asdict(schedule)
    count(schedule, make_problem(["prune"], BOTH))
    assert dataclasses.asdict(schedule) == before


def test_a_replayed_plan_needs_no_configured_compressor(tmp_path: Path) -> None:
    run(tmp_path / "first", settings_of(Uniform([0.3])))
    schedule = ReplayedPlan(path=str(tmp_path / "first" / "plan.json"))
    record = run(tmp_path / "second", settings_of(schedule, Int8()))
    assert record.expense is not None


@pytest.mark.slow
def test_time_is_at_most_what_every_pass_alone_would_take(tmp_path: Path) -> None:
    record = run(tmp_path, settings_of(FdtAllocation([0.2, 0.3])))
    assert record.expense is not None and record.expense.actual is not None
    forecast, actual = record.expense.forecast.seconds, record.expense.actual.seconds
    assert forecast is not None and actual is not None and 0.1 < forecast / actual < 100


def test_time_is_passes_times_the_seconds_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without treated weights; the seconds are those that the base's own scores took."""
    seen: list[cost.CostForecast] = []

    def note(*given: Any) -> Any:  # noqa: ANN401 - passed on
        found = cost.forecast_cost(*given)
        assert found is not None
        seen.append(replace(found, seconds_per_weight=None))
        return seen[-1]

    monkeypatch.setattr("compressor.commands.run.forecast_cost", note)
    record = run(tmp_path, settings_of(FdtAllocation([0.3])))
    assert record.expense is not None and seen[0].seconds_per_pass > 0
    assert record.expense.forecast.seconds == pytest.approx(record.expense.forecast.passes * seen[0].seconds_per_pass)


def test_a_compressor_that_cannot_be_tried_costs_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another amount than those that the search tries may be refused; that is no reason to stop."""

    def refuse(*_: Any) -> None:  # noqa: ANN401 - whatever comes
        raise ConfigError("not this amount")

    monkeypatch.setattr(cost, "holds_exactly", refuse)
    record = run(tmp_path, settings_of(Uniform([0.3])))
    assert record.expense is not None and record.expense.forecast.seconds is not None


def test_a_compressor_that_gives_another_weight_each_time_is_refused_before_the_search(tmp_path: Path) -> None:
    calls = itertools.count()

    @dataclass
    class Drifting(Magnitude):
        def compress_each(self, weight: Any, amounts: Any, context: Any) -> Any:  # noqa: ANN401 - as the contract says
            return super().compress_each(weight * (1 + next(calls)), amounts, context)

    settings = settings_of(Uniform([0.3]), Drifting())
    with pytest.raises(PluginError, match=r"compressor `magnitude` of .*Drifting gave another weight at a second call"):
        run(tmp_path, settings)
    assert not (tmp_path / "scores.jsonl").exists()


@pytest.mark.parametrize(
    ("offer", "amount"), [(Offer(), 0.5), (Offer(low=0.2, high=0.4), 0.3), (Offer(levels=(0.75, 0.5, 0.25)), 0.5)]
)
def test_the_middle_is_offered(offer: Offer, amount: float) -> None:
    assert cost.find_middle(offer) == pytest.approx(amount) and offer.contains(cost.find_middle(offer))


def refuse_to_run(folder: Path, settings: Settings) -> str:
    """The one line of a run that cannot fit, which leaves nothing."""
    with pytest.raises(CannotFit) as refused:
        run(folder, settings)
    assert [*folder.iterdir()] == []
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_disk_that_is_told_is_the_one_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a training, whose file is written beside the one before."""
    settings = settings_of(Uniform([0.3, 0.5]), recovery=Finetune(3, 1, windows=16, tokens=8, batch=4))
    most: list[int] = []

    def note(path: Path, *content: Any) -> int:  # noqa: ANN401 - as write_arrays
        size = write_arrays(path, *content)
        most.append(measure_folder(tmp_path) + size)  # the file is as large as the one that it replaces
        return size

    def ask(folder: Path, needed: int) -> int:
        asked.append(needed)
        return needed

    monkeypatch.setattr(training_state, "write_arrays", note)
    monkeypatch.setattr(run_trainer, "SAVED_EVERY", 0.0)
    asked: list[int] = []
    monkeypatch.setattr(cost, "find_room", ask)
    record = run(tmp_path, settings)
    assert record.expense is not None and record.expense.actual is not None
    forecast = record.expense.forecast.disk_bytes
    assert asked == [forecast] and most
    assert max(most) <= forecast <= 1.5 * max(most) + cost.SMALL_FILES


def test_a_refused_run_that_was_interrupted_keeps_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(Uniform([0.3]))

    def halt(self: Run) -> None:
        self.session.scorer.answers.add("key", {}, {"fact": 1})
        self.session.scorer.answers.save()
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "prove", halt)
        run(tmp_path, settings)
    stored = {path: path.read_bytes() for path in (tmp_path / "state" / "answers").iterdir()}
    with monkeypatch.context() as patch, pytest.raises(CannotFit):
        patch.setattr(disk_space, "read_free_disk", lambda folder: 1_000_000)
        run(tmp_path, settings)
    assert {path: path.read_bytes() for path in (tmp_path / "state" / "answers").iterdir()} == stored != {}
    assert {path.name for path in tmp_path.iterdir()} == {".compressor", "status.json", "state"}
    assert run(tmp_path, settings).status == "done"


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "read_free_disk", lambda folder: 1_000_000)
    tmp_path = tmp_path / "run"
    said = refuse_to_run(tmp_path, settings_of(Uniform([0.3])))
    assert f"in {tmp_path}, where 1 MB are free; free " in said and "hydra.run.dir=DIR" in said


@pytest.mark.parametrize("schedule", [Budget([0.3]), *rarely([Uniform([0.3])])])
def test_a_memory_that_is_too_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Schedule
) -> None:
    monkeypatch.setattr(cost, "read_memory", lambda device: Memory(GIB, 2 * GIB, GIB - 1))
    said = refuse_to_run(tmp_path / "none", settings_of(schedule))
    assert "of memory, and can have 1.07 GB; " in said
    assert said.endswith("set model.dtype=bfloat16, which needs 1.07 GB") or "; free " in said
    monkeypatch.setattr(cost, "read_memory", lambda device: Memory(GIB, 2 * GIB, GIB // 2))
    assert "; free " in refuse_to_run(tmp_path / "less", settings_of(schedule))


def test_what_was_used_before_is_no_reason_to_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "read_memory", lambda device: Memory(GIB, 8 * GIB, 2 * GIB))
    record = run(tmp_path, settings_of(Uniform([0.3])))
    assert record.expense is not None and record.expense.forecast.memory_bytes == 8 * GIB


def test_cutting_takes_another_copy_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a plan that changes little, so that the export takes most; weights are float32."""
    monkeypatch.setattr(cost, "read_memory", lambda device: Memory(GIB, GIB, 2 * GIB))
    components, found = ComponentSettings(include=["0.mlp.down_proj"]), list[int]()
    for cut in (False, True):
        export = ExportSettings(cut=cut, verify=False)
        settings = replace(settings_of(Uniform([0.3])), components=components, export=export)
        record = run(tmp_path / str(cut), settings)
        assert record.expense is not None and record.expense.forecast.memory_bytes is not None
        found.append(record.expense.forecast.memory_bytes)
    assert found[1] - found[0] == 4 * record.base["parameters"]


def test_a_system_that_does_not_say_is_not_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "read_memory", lambda device: None)
    record = run(tmp_path, settings_of(Uniform([0.3])))
    assert record.expense is not None and record.expense.actual is not None
    assert record.expense.forecast.memory_bytes is record.expense.actual.memory_bytes is None


def test_the_record_comes_back_from_its_report(tmp_path: Path) -> None:
    record = run(tmp_path, settings_of(FdtAllocation([0.3])))
    assert read_report(tmp_path).expense == record.expense
    page = (tmp_path / "report.html").read_text()
    assert "The forecast before the search: about 9 trials, " in page and " It took 9 trials, " in page


def test_a_page_of_a_run_without_a_forecast_says_nothing() -> None:
    assert "forecast" not in make_page(Record("done", {}, {}))


def test_expense_in_words() -> None:
    whole = RunCost(480, 480.0, 185.0, 1_200_000_000, 12_000_000)
    assert describe_cost(whole) == "480 trials, 3 min 05 s, 1.2 GB of memory, 12 MB on disk"
    assert describe_expected_cost(whole).startswith("about 480 trials, at most 3 min 05 s, ")
    left = RunCost(1000, 2000.4, None, None, 12, at_least=True)
    assert describe_expected_cost(left) == "at least 1,000 trials, 2,000 forward passes, 12 bytes on disk"
    assert describe_cost(RunCost(0, 0.0, None, None, 12)) == "12 bytes on disk"
    assert RunCostRecord(whole).actual is None
