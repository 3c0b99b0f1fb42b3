"""Which trials are best: exact where nothing is saved, and each saving errs no more often than it says."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from compressor.commands.early_checks import check_numbers, check_screen, list_ineffective
from compressor.commands.run import execute
from compressor.contracts import (
    BestRequest,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Metric,
    Plan,
    Prefixes,
    ScoreRequest,
    Treatment,
    ValuesRequest,
)
from compressor.errors import ConfigError
from compressor.evaluation.bootstrap import summarize
from compressor.evaluation.evaluator import SequenceValues
from compressor.plugins import installed
from compressor.progress import Silent
from compressor.search.ledger import Ledger
from compressor.search.surrogate import Surrogate
from compressor.search.top_trials import TopTrials
from compressor.search.trial_scoring import TrialScorer
from compressor.settings import (
    ComponentSettings,
    DataSettings,
    ExportSettings,
    Settings,
    SweepMode,
    SweepSettings,
    TrackingSettings,
)
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.beam.beam import Beam
from tests.support.estimates import make_bench
from tests.support.sessions import open_session
from tests.support.slow import rarely

Array = np.ndarray[Any, Any]
APPROXIMATE = SweepSettings(mode=SweepMode.approximate, audit=0)
SAVING_NOTHING = replace(APPROXIMATE, lazy=False)
TOKENS = 64
REMOVED = "`sweep.racing` is ignored: racing was removed, because it measured no gain; leave the setting out"


def plan_of(index: int) -> Plan:
    return {str(index): Treatment("none", 0.5)}


@dataclass
class FakeSweep:
    """Scores trial i by row i of `data` `[trial, sequence]`, and notes what it was asked."""

    data: Array
    asked: list[tuple[int, int, int | None]]

    def score(
        self, trials: Sequence[Plan], names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[dict[int, SequenceValues]]:
        for number, trial in reversed([*enumerate(trials)]):
            (index,) = map(int, trial)
            self.asked.append((index, start, stop))
            yield {number: dict.fromkeys(names, self.data[index, start:stop, None])}


@dataclass
class FakeEstimator:
    """Predicts `predicted` `[trial, sequence]`, and notes for which options it was asked."""

    predicted: Array | None
    asked: list[Mapping[str, Sequence[Treatment | None]]] = field(default_factory=list)

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        assert self.predicted is not None
        self.asked.append(request.options)
        return {name: Estimate(self.predicted[int(name)][:, None]) for name in request.options}


@dataclass
class FakeSession:
    """A search without a model."""

    scorer: TrialScorer
    estimator: Any
    top_trials: TopTrials

    @property
    def ledger(self) -> Ledger:
        return self.scorer.ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def make_session(
    folder: Path,
    data: Array,
    how: SweepSettings,
    metric: Metric | None = None,
    predicted: Array | None = None,
    seed: int = 0,
) -> FakeSession:
    metric = metric or Fdtm()
    evaluators: Any = {Prefixes.SEARCH: FakeSweep(data, [])}
    metrics = {metric.name: metric, "kl": Kl()}
    scorer = TrialScorer(evaluators, metrics, Ledger(data.shape[1]), Silent(), folder, seed)
    estimator: Any = FakeEstimator(predicted)
    return FakeSession(scorer, estimator, TopTrials(scorer, estimator, how))


def test_trials_are_compared_sequence_by_sequence(tmp_path: Path) -> None:
    """Scores are of the values per sequence that can be asked for."""
    data = np.random.default_rng(0).integers(0, TOKENS, (3, 40)).astype(float)
    session, trials = make_session(tmp_path, data, SweepSettings()), [plan_of(index) for index in (2, 0)]
    values = session.scorer.values(ValuesRequest(trials, ["fdtm"], start=8, stop=32))
    scores = session.scorer.score(ScoreRequest(trials, ["fdtm"], start=8, stop=32))
    for index, found, score in zip((2, 0), values, scores, strict=True):
        assert found["fdtm"].tolist() == data[index, 8:32].tolist()
        assert score["fdtm"].mean == pytest.approx(found["fdtm"].mean())
    assert session.ledger.trials == 4 and session.ledger.passes == pytest.approx(4 * 24 / 40)


def ask(session: FakeSession, count: int, statistic: str = "mean", bounds: Sequence[float | None] = ()) -> Any:  # noqa: ANN401
    trials = [plan_of(index) for index in range(len(session.scorer.evaluators[Prefixes.SEARCH].data))]  # type: ignore[attr-defined]
    return session.top_trials.find(BestRequest(trials, next(iter(session.scorer.metrics)), count, statistic, bounds))


def draw_lengths(rng: np.random.Generator, means: Sequence[float], sequences: int) -> Array:
    """`[trial, sequence]` in [0, 64]: each sequence is easy or hard for all trials alike."""
    ease = rng.gamma(2.0, 0.5, size=sequences)
    noise = rng.gamma(4.0, 0.25, size=(len(means), sequences))
    return np.clip(np.array(means)[:, None] * ease * noise, 0, TOKENS)


# Answers ----------------------------------------------------------------------------------------------------------

DATA = st.integers(0, 2**32 - 1).map(
    lambda seed: draw_lengths(np.random.default_rng(seed), range(1, 8), 20).round().astype(float)
)
SHARED = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SHARED
@given(DATA, st.integers(1, 9), st.sampled_from(["mean", "p75", "min"]))
def test_without_savings_the_answer_is_exact(folder: Path, data: Array, count: int, statistic: str) -> None:
    bounds = [float(value) for value in data.mean(axis=1)]
    exact, nothing_saved = (
        ask(make_session(folder, data, how), count, statistic, bounds) for how in (SweepSettings(), SAVING_NOTHING)
    )
    assert exact == nothing_saved
    values = [getattr(summarize(Fdtm(), row[:, None]), statistic) for row in data]
    assert [*exact.chosen] == sorted(range(7), key=lambda i: (-values[i], i))[:count]
    assert all(scores is not None for scores in exact.scores)


@SHARED
@given(DATA, st.integers(1, 4), st.sampled_from(["mean", "p75"]), st.integers(0, 3))
def test_what_is_measured_has_its_exact_scores(
    folder: Path, data: Array, count: int, statistic: str, audit: int
) -> None:
    session = make_session(folder, data, replace(APPROXIMATE, audit=audit), DivergentPerplexity())
    data /= TOKENS
    values = [getattr(summarize(DivergentPerplexity(), row[:, None]), statistic) for row in data]
    answer = ask(session, count, statistic, bounds=[None, None, None, *values[3:]])
    assert len(answer.chosen) == count
    for index, scores in enumerate(answer.scores):
        if scores is not None:
            assert scores == {"divergent_perplexity": summarize(DivergentPerplexity(), data[index, :, None])}
    totals = session.ledger.approximation
    assert totals.measured + totals.skipped - totals.audited == totals.trials == 7
    assert all(answer.scores[index] is not None for index in answer.chosen)


def test_bounds_save_passes_and_what_is_measured_is_noted(folder: Path) -> None:
    data = draw_lengths(np.random.default_rng(3), [30, 29, 1, 1, 1, 1], 64)
    session = make_session(folder, data, APPROXIMATE, Kl())
    answer = ask(session, 4, bounds=[20.0, 20.0, None, None, None, None])
    assert {*answer.chosen} == {2, 3, 4, 5} and answer.scores[:2] == (None, None)
    assert session.ledger.trials == 4 and session.ledger.approximation.skipped == 2
    assert session.ledger.passes == len(session.scorer.evaluators[Prefixes.SEARCH].asked) == 4
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert sorted(int(*line["plan"]) for line in lines) == [2, 3, 4, 5]
    assert {line["scores"]["kl"]["n"] for line in lines} == {64}


def test_bounds_say_where_to_stop(folder: Path) -> None:
    values = np.arange(40, 0, -1.0)
    session = make_session(folder, np.repeat(values[:, None], 8, axis=1), APPROXIMATE)
    answer = ask(session, 2, bounds=[None, *values[1:]])
    assert answer.chosen == (0, 1)
    assert (
        session.ledger.approximation.skipped == 31
        and session.ledger.approximation.measured == 9
        and session.ledger.approximation.violations == 0
    )
    everything = make_session(folder, np.repeat(values[:, None], 8, axis=1), APPROXIMATE)
    assert ask(everything, 2).chosen == (0, 1) and everything.ledger.approximation.measured == 40


def test_lower_may_be_better(folder: Path) -> None:
    values = np.arange(1.0, 41.0)
    session = make_session(folder, np.repeat(values[:, None], 8, axis=1), APPROXIMATE, Kl())
    assert ask(session, 2, bounds=[*values]).chosen == (0, 1) and session.ledger.approximation.measured == 8


def test_trials_that_beat_their_bounds_are_counted(folder: Path) -> None:
    values = np.arange(20.0, 0, -1)
    bounds = [*values[:10] - 1, *values[10:] + 1]
    session = make_session(folder, np.repeat(values[:, None], 8, axis=1), replace(APPROXIMATE, audit=20))
    ask(session, 1, bounds=bounds)
    assert session.ledger.approximation.violations == 10 and session.ledger.approximation.measured == 20


def test_the_audit_finds_a_planted_miss_and_mends_it(folder: Path) -> None:
    values = np.arange(20.0, 0, -1)
    values[19] = 30.0  # the best, and its bound says the worst
    for audit, missed in ((0, 0), (12, 1)):
        session = make_session(folder, np.repeat(values[:, None], 8, axis=1), replace(APPROXIMATE, audit=audit))
        answer = ask(session, 2, bounds=[*np.arange(20.0, 0, -1)])
        assert answer.chosen == ((19, 0) if missed else (0, 1))
        assert (session.ledger.approximation.audited, session.ledger.approximation.missed) == (audit, missed)
        assert session.ledger.approximation.violations == missed


def test_the_audit_measures_whole_trials_drawn_by_the_seed(folder: Path) -> None:
    data = draw_lengths(np.random.default_rng(4), [1] * 12 + [40] * 12, 64)
    drawn = []
    for seed in (0, 0, 1):
        session = make_session(folder, data, replace(APPROXIMATE, audit=3), Kl(), seed=seed)
        answer = ask(session, 12, bounds=[None] * 12 + [20.0] * 12)
        drawn.append([index for index in range(12, 24) if answer.scores[index] is not None])
        for index in drawn[-1]:
            pieces = [
                range(64)[start:stop]
                for i, start, stop in session.scorer.evaluators[Prefixes.SEARCH].asked
                if i == index
            ]
            assert pieces == [range(64)]
    assert len(drawn[0]) == 3 and drawn[0] == drawn[1] != drawn[2]


def screened(folder: Path, values: Array, predicted: Array, delta: float = 0.05) -> Any:  # noqa: ANN401 - a FakeSearch
    """A search of trials that have these values on all of 8 prefixes."""
    how = replace(APPROXIMATE, screen="kl", delta=delta)
    return make_session(
        folder, np.repeat(values[:, None], 8, axis=1), how, Kl(), predicted=predicted[:, None] + 0 * np.ones(8)
    )


def test_the_screen_drops_what_is_predicted_to_be_worse(folder: Path) -> None:
    predicted = np.random.default_rng(5).permutation(np.geomspace(0.01, 10, 80))
    session = screened(folder, 3 * predicted**0.7, predicted)
    answer = ask(session, 3)
    assert [*answer.chosen] == np.argsort(predicted)[:3].tolist()
    assert session.ledger.approximation.measured == 8 + 4 and session.ledger.approximation.screened == 80 - 12
    soundings = sorted(index for index, scores in enumerate(answer.scores) if scores)
    assert {np.argmax(predicted), *np.argsort(predicted)[:9]} <= {*soundings}


@pytest.mark.slow
def test_the_screen_keeps_the_best_as_often_as_it_says(folder: Path) -> None:
    missed, measured, repeats = 0, 0, 200
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        predicted = np.exp(rng.normal(size=60))
        values = predicted**0.8 * np.exp(0.3 * rng.normal(size=60))
        session = screened(folder, values, predicted)
        missed += not {*ask(session, 3).chosen} == {*np.argsort(values)[:3]}
        measured += session.ledger.approximation.measured
    assert missed <= binom.ppf(0.999, repeats, 0.05)
    assert measured < 0.5 * repeats * 60


@pytest.mark.parametrize("screen", [None, *rarely(["kl"])], ids=["bounds", "screen"])
def test_no_more_than_the_tolerance_is_lost(screen: str | None, folder: Path) -> None:
    """And what is given up is worth it: fewer trials are measured."""
    passes: dict[float, float] = {}
    for tolerance in (0.0, 0.1):
        lost, passes[tolerance] = 0, 0.0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            predicted = np.exp(0.3 * rng.normal(size=60))
            values = predicted**0.8 * np.exp(0.1 * rng.normal(size=60))
            how = replace(APPROXIMATE, screen=screen, tolerance=tolerance)
            data, given = (np.repeat(array[:, None], 32, axis=1) for array in (values, predicted))
            data *= np.exp(0.1 * rng.normal(size=(60, 32)))
            bounds = () if screen else [*(data.mean(axis=1) * rng.uniform(0.6, 1.0, size=60))]
            session = make_session(folder, data, how, Kl(), predicted=given)
            found = values[[*ask(session, 3, bounds=bounds).chosen]]
            lost += found.max() > np.sort(values)[2] * (1.05 + tolerance)  # the noise of 32 sequences is 2 %
            passes[tolerance] += session.ledger.passes
        assert lost <= binom.ppf(0.999, 60, 0.05)
    assert passes[0.1] < 0.9 * passes[0.0]


def test_what_is_special_about_a_treatment_is_learned(folder: Path) -> None:
    """Its own measured effect counts when plans with it are predicted, in another question of the same round."""
    rng = np.random.default_rng(0)
    screen, off = Surrogate(), {"0": 3.0}
    costs = {str(index): float(cost) for index, cost in enumerate(rng.uniform(1, 2, size=12))}
    estimates = {name: Estimate(np.full((4, 1), cost)) for name, cost in costs.items()}
    plans = [plan for a in range(12) for b in range(a) if (plan := {**plan_of(a), **plan_of(b)})]
    values = [-sum(costs[name] * off.get(name, 1.0) for name in plan) for plan in plans]
    for plan, value in zip(plans[::2], values[::2], strict=True):
        screen.note("kl mean", plan, value)
    bounds = screen.bound("kl mean", plans[1::2], "kl", 0.01, lambda request: estimates)
    assert bounds is not None
    exceeded = np.log(np.array(values[1::2]) / bounds)
    assert np.all(exceeded > 0) and exceeded.max() < 0.4 < math.log(2)
    assert screen.bound("another", plans[1::2], "kl", 0.01, lambda request: estimates) is None


def test_the_screen_asks_for_each_treatment_once(folder: Path) -> None:
    session = make_session(folder, np.ones((4, 8)), replace(APPROXIMATE, screen="kl"), predicted=np.ones((4, 8)))
    surrogate, estimate = session.top_trials.surrogate, session.estimator.estimate
    plans = [plan_of(0), plan_of(1), {**plan_of(0), **plan_of(1)}]
    assert surrogate.predict(plans, "kl", estimate).tolist() == [1, 1, 2]
    assert surrogate.predict([*plans, plan_of(2), {}], "kl", estimate).tolist() == [1, 1, 2, 1, 0]
    asked = session.estimator.asked
    assert [[*options] for options in asked] == [["0", "1"], ["2"]]
    assert all(len(options) == 1 for found in asked for options in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, "`sweep.delta` must be in (0, 1), got 0; 0.05 is one error in 20"),
        ({"delta": math.nan}, "`sweep.delta` must be in (0, 1), got nan; "),
        ({"tolerance": 1.0}, "`sweep.tolerance` must be in [0, 1), got 1; 0.02 ignores gains below 2 %"),
        ({"audit": -1}, "`sweep.audit` must not be negative, got -1; 0 measures none of them"),
        ({"screen": "margin_nose"}, "unknown metric `margin_nose` in `sweep.screen`; did you mean `margin_noise`?"),
        ({"screen": "fdtm"}, "`sweep.screen` must be a metric that can be estimated, got `fdtm`; known: "),
    ],
)
def test_wrong_settings_are_told_in_one_line(change: Mapping[str, Any], message: str) -> None:
    wrong = replace(APPROXIMATE, **change)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        check_numbers(Settings({}, {}, None, sweep=wrong))
        check_screen(wrong, installed().metrics)
    assert str(caught.value).isprintable()


def test_only_a_racing_setting_that_somebody_gave_is_warned_of() -> None:
    assert not list(list_ineffective(Settings({}, {}, None)))
    for value in (True, False):
        assert list(list_ineffective(Settings({}, {}, None, sweep=SweepSettings(racing=value)))) == [REMOVED]


# With a model -----------------------------------------------------------------------------------------------------


def test_a_question_about_a_model_costs_what_it_says(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path, count=20)
    metrics: dict[str, Metric] = {"kl": Kl(), "fdtm": Fdtm()}
    how = replace(APPROXIMATE, screen="kl", audit=1, cache=False)
    session = open_session(bench.model, bench.reference, bench.treatments, metrics, tmp_path, how)
    plain = open_session(bench.model, bench.reference, bench.treatments, metrics, tmp_path)
    names = [*bench.model.components][:6]
    trials = [{name: Treatment("magnitude", amount)} for amount in (0.05, 0.9) for name in names]
    exact = plain.best(BestRequest(trials, "kl", 3))
    found = session.best(BestRequest(trials, "kl", 3))
    assert found.chosen == exact.chosen
    for index, scores in enumerate(found.scores):
        if scores is not None:
            assert scores["kl"].mean == pytest.approx(exact.scores[index]["kl"].mean, rel=1e-5)
    totals = session.ledger.approximation
    assert totals.trials == 12 == totals.measured - totals.audited + totals.screened
    assert 4 + totals.measured <= session.ledger.passes + 1e-9 < 4 + 12 and totals.missed == 0
    session.keep(KeepRequest(trials[found.chosen[0]]))
    assert session.rounds.notes == totals.describe()
    assert session.ledger.approximation.trials == 0
    assert session.best(BestRequest(trials[:1], "kl", 1)).chosen == (0,)
    fresh = session.top_trials.surrogate  # of the new round: it has seen one trial, and no prediction was asked for
    assert not fresh.options and [len(known) for known in fresh.measured.values()] == [1]
    assert session.rounds.notes[0].startswith(
        f"Approximate search: {totals.measured} of 12 trials were measured on all"
    )


def run(folder: Path, how: SweepSettings) -> Any:  # noqa: ANN401 - a Record
    settings = Settings(
        metric={"fdtm": Fdtm()},
        compressor={"int8": Int8(granularity="tensor")},  # type: ignore[arg-type]
        schedule=Beam(width=2, count=3, ranker="kl"),
        data=DataSettings(prefixes=16, proof_prefixes=2, prefix_tokens=6, continuation_tokens=8),
        components=ComponentSettings(include=[r"layers\.[01]\.(self_attn|mlp)\.[kvd]"]),
        sweep=how,
        tracking=TrackingSettings(backend="none"),
        export=ExportSettings(format="dense", verify=False),
    )
    folder.mkdir()
    return execute(settings, installed(), folder, {}, "compressor run")


@pytest.mark.slow
def test_an_approximate_run_finds_the_exact_plan_or_says_that_it_missed(tmp_path: Path) -> None:
    exact = run(tmp_path / "exact", SweepSettings())
    close = run(tmp_path / "approximate", SweepSettings(mode=SweepMode.approximate, screen="kl"))
    plans = [(tmp_path / name / "plan.json").read_text() for name in ("exact", "approximate")]
    assert not any(note.startswith("Approximate search") for note in exact.notes)
    (note,) = (note for note in close.notes if note.startswith("Approximate search: "))
    assert plans[0] == plans[1] or not note.endswith("of these among the best: 0.")
    curve = json.loads((tmp_path / "approximate" / "report.json").read_text())["rounds"][0]["curve"]
    assert [point["components"] for point in curve] == [1, 2, 3] == [len(point["plan"]) for point in curve]
    assert all(0 < a["share"] < b["share"] < 1 for a, b in pairwise(curve))
    assert {point["metric"] for point in curve} == {"kl"}
    assert curve[-1]["plan"].keys() == json.loads(plans[1]).keys()
