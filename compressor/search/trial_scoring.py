"""Trials and options of a model are scored, measured and estimated, and what that costs is added up."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts.files import append_json_line
from compressor.artifacts.plan_file import plan_to_json
from compressor.compression.apply import Treatments
from compressor.compression.calibration import Calibration, gather
from compressor.compression.trial_weights import TrialWeights
from compressor.contracts import (
    EstimableMetric,
    Estimate,
    EstimateRequest,
    Metric,
    Plan,
    Prefixes,
    Score,
    ScoreRequest,
    Scores,
    Treatment,
)
from compressor.contracts.requests import list_measured
from compressor.errors import ConfigError
from compressor.evaluation.bootstrap import join_blocks, summarize
from compressor.evaluation.evaluator import Evaluator, Statistics
from compressor.models import Model
from compressor.progress import Progress, watch
from compressor.search.ledger import ApproximationTotals
from compressor.search.surrogate import Surrogate
from compressor.sensitivity.cache import EstimateCache, Known, estimates_folder
from compressor.sensitivity.estimator import GradientEstimator
from compressor.settings import SweepSettings

PASSES_OF_WALK = 4
"""A walk back is a forward pass, a second one layer by layer, and gradients of inputs and of weights."""


@dataclass(kw_only=True)
class Scorer:
    """Scores changes of one model, which has the plan `kept` on it by the `round`.

    `tokens` is the length of a continuation, `prefixes` how many there are to search on; lines of scores go to
    `folder`. `passes` is what the round has cost so far, in forward passes over all search prefixes, `trials` how many
    plans it has tried, `recalled` how many options were known from earlier runs; such answers may take `cache_bytes` on
    disk. `settings` say how the best of many trials are found, `savings` what that has saved in the round, `screen`
    what it knows of treatments, `trial_weights` make the weights of trials. `levels` are the metrics' first statistics
    at the start of the round, of the first search prefixes, as many as were measured.
    """

    model: Model
    metrics: Mapping[str, Metric]
    treatments: Treatments
    evaluators: Mapping[Prefixes, Evaluator]
    trial_weights: TrialWeights
    folder: Path
    progress: Progress
    tokens: int
    prefixes: int
    seed: int = 0
    settings: SweepSettings = field(default_factory=SweepSettings)
    kept: dict[str, Treatment] = field(default_factory=dict)
    round: int = 1
    trials: int = 0
    passes: float = 0.0
    recalled: int = 0
    cache_bytes: int = 0
    savings: ApproximationTotals = field(default_factory=ApproximationTotals)
    screen: Surrogate = field(default_factory=Surrogate)
    levels: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def calibrate(self, compressors: Iterable[str]) -> None:
        """Gather what the compressors of these names need of all components, where it is not there already.

        Of the model as it stands, so call it where nothing is swapped.
        """
        needs, before = self.treatments.find_needs(compressors), self.treatments.calibration
        known = frozenset[str]() if before is None else before.names
        if needs <= known:
            return
        self.treatments.calibration = None
        self.treatments.calibration = self.gather(self.model.components, needs | known)

    @contextmanager
    def calibrated(self, plan: Plan) -> Iterator[None]:
        """Inside, there are the statistics that the plan needs, if only of its components; it costs less than all."""
        needs, before = self.treatments.find_needs(t.compressor for t in plan.values()), self.treatments.calibration
        layers = [self.model.components[name].layer for name in plan]
        last = None if None in layers else max((layer for layer in layers if layer is not None), default=None)
        if needs and (before is None or not needs <= before.names):
            self.treatments.calibration = self.gather(list(plan), needs, last)
        try:
            yield
        finally:
            self.treatments.calibration = before

    def gather(self, components: Collection[str], names: Collection[str], last: int | None = None) -> Calibration:
        """Statistics of some components, of the model as it stands; no layer behind `last` is run."""
        reference, description = self.evaluators[Prefixes.SEARCH].reference, f"round {self.round}: calibrating"
        found = watch(self.progress, description, lambda: gather(self.model, reference, components, names, last))
        self.spend(found.passes, 0, None)
        return found

    def score_trials(self, request: ScoreRequest) -> tuple[dict[str, Score], ...]:
        """Score each trial exactly."""
        return tuple(scores for _, scores in self.run_trials(request))

    def list_values(self, request: ScoreRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        """Of each trial the metrics' first statistics, `[sequence]`."""
        found = self.run_trials(request)
        return tuple({name: rows[:, 0] for name, rows in statistics.items()} for statistics, _ in found)

    def run_trials(self, request: ScoreRequest) -> list[tuple[Statistics, dict[str, Score]]]:
        """Statistics and scores of each trial, in order."""
        trials = request.trials
        found = self.evaluators[request.prefixes].score(trials, request.metrics, request.start, request.stop)
        description = f"round {self.round}: scoring trials"
        answers, began = dict[int, tuple[Statistics, dict[str, Score]]](), time.monotonic()
        for number, statistics in self.progress.track(found, description, len(trials)):
            scores = self.summarize(statistics)
            answers[number] = statistics, scores
            self.note_trial(trials[number], request.prefixes, scores, time.monotonic() - began)
            began = time.monotonic()
        self.trials += len(trials)
        if request.prefixes is Prefixes.SEARCH:
            self.spend(len(trials), request.start, request.stop)
        return [answers[number] for number in range(len(trials))]

    def note_trial(self, plan: Plan, prefixes: Prefixes, scores: Scores, seconds: float) -> None:
        """A line in scores.jsonl, where rows are but said to be there."""
        line = {
            "round": self.round,
            "prefixes": prefixes.value,
            "plan": plan_to_json(plan),
            "scores": {name: score.to_json() for name, score in scores.items()},
            "seconds": seconds,
        }
        append_json_line(self.folder / "scores.jsonl", line)

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """Predict, or measure, what options do on the search prefixes; of the base's from an earlier run's answer."""
        cache = self.open_cache(request)
        known = cache.read(request) if cache else None
        if known is not None:
            self.recalled += sum(map(len, request.options.values()))
        else:
            known = self.measure(request) if request.measured else Known(self.predict(request))
            if cache:
                cache.write(request, known)
        if known.level is not None:
            whole = self.metrics[request.objective].text() is not None
            held = self.levels.get(request.objective, np.empty(0))
            self.levels[request.objective] = join_blocks(held, 0 if whole else request.start, known.level)
        return known.estimates

    def open_cache(self, request: EstimateRequest) -> EstimateCache | None:
        """Where answers to such requests are kept; None where nothing is, or the model is no more the base."""
        if not self.cache_bytes or self.kept or request.at:
            return None
        evaluator, metric = self.evaluators[Prefixes.SEARCH], self.metrics[request.objective]
        return EstimateCache(
            estimates_folder(), self.cache_bytes, self.model, evaluator.reference, self.treatments, metric,
            evaluator.windows.get(request.objective), evaluator.mode.value, self.seed,
        )  # fmt: skip

    def predict(self, request: EstimateRequest) -> dict[str, Estimate]:
        """What one backward pass says of options."""
        objective, evaluator = self.metrics[request.objective], self.evaluators[Prefixes.SEARCH]
        if not isinstance(objective, EstimableMetric):
            raise ConfigError(f"metric `{request.objective}` cannot be estimated; measure it, or choose another")
        sensitivity = GradientEstimator(
            self.model, evaluator.reference, self.treatments, objective, not self.kept, self.seed
        )
        description = f"round {self.round}: estimating options"
        answer = watch(self.progress, description, lambda: sensitivity.estimate(request))
        self.spend(sensitivity.walks(request) * PASSES_OF_WALK, request.start, request.stop)
        return answer

    def measure(self, request: EstimateRequest) -> Known:
        """The same answer from a trial for each option: the difference of the objective's first statistic."""
        metrics, trials = (request.objective,), list_measured(request)
        description = f"round {self.round}: measuring options"
        scored = self.evaluators[Prefixes.SEARCH].score(trials, metrics, request.start, request.stop)
        found = dict(self.progress.track(scored, description, len(trials)))
        now, *values = (found[number][request.objective][:, 0] for number in range(len(trials)))
        self.trials += len(trials)
        self.spend(len(trials), request.start, request.stop)
        answer, start = {}, 0
        for name, options in request.options.items():
            stop = start + len(options)
            answer[name] = Estimate(np.stack([value - now for value in values[start:stop]], axis=1))
            start = stop
        return Known(answer, None if request.at else now)

    def spend(self, passes: float, start: int, stop: int | None) -> None:
        """Add passes over the search prefixes from `start` to `stop` to the cost of the round."""
        self.passes += passes * share_prefixes(self.prefixes, start, stop)

    def summarize(self, statistics: Statistics) -> dict[str, Score]:
        return {name: summarize(self.metrics[name], rows, self.seed) for name, rows in statistics.items()}


def note_cached(count: int) -> list[str]:
    """A note on options that were known; none where there were none."""
    if not count:
        return []
    return [
        f"What {count} options do alone came from the cache, measured by an earlier run of the same model, compressors "
        "and data: it counts no trials and no passes here. sweep.cache=false asks anew."
    ]


def share_prefixes(prefixes: int, start: int, stop: int | None) -> float:
    """The share of so many prefixes that lie between `start` and `stop`."""
    return len(range(prefixes)[start:stop]) / prefixes
