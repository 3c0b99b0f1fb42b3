"""The loop: ask the schedule, score or count or keep what it asks for, tell it what came out."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compressor.accounting import amount_of, mean_amount, treated_share
from compressor.best import find_best
from compressor.contracts import (
    BestRequest,
    CountRequest,
    Dialogue,
    EstimableMetric,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Metric,
    Prefixes,
    Problem,
    Request,
    Schedule,
    ScoreRequest,
    SizeRequest,
    Waypoint,
)
from compressor.engine import Trial
from compressor.errors import ConfigError
from compressor.files import append_json_line
from compressor.models import Model
from compressor.plans import plan_to_json
from compressor.progress import Progress, watch
from compressor.record import CurvePoint, RoundRecord
from compressor.savings import Savings
from compressor.screening import Screen
from compressor.sensitivity import Sensitivity
from compressor.settings import SweepSettings
from compressor.statistics import summarize
from compressor.sweep import Statistics, Sweep
from compressor.treatments import Treatments
from compressor.values import Plan, Score, Scores, Treatment

PASSES_OF_WALK = 4
"""A walk back is a forward pass, a second one layer by layer, and gradients of inputs and of weights."""


@dataclass
class Search:
    """A schedule's search on one model. `kept` is the plan so far, `rounds` the record of each kept one.

    `on_round` is called with the number and the record of each round that ends; `tokens` is the length of a
    continuation, `prefixes` how many there are to search on. `passes` is what the round has cost so far, in forward
    passes over all search prefixes; `notes` are what schedules want a person to know. `settings` say how the best of
    many trials are found, `savings` what that has saved in the round, `screen` what it knows of treatments.
    """

    model: Model
    metrics: Mapping[str, Metric]
    treatments: Treatments
    sweeps: Mapping[Prefixes, Sweep]
    folder: Path
    progress: Progress
    on_round: Callable[[int, RoundRecord], None]
    tokens: int
    prefixes: int
    seed: int = 0
    settings: SweepSettings = field(default_factory=SweepSettings)
    kept: dict[str, Treatment] = field(default_factory=dict)
    packed_bits: dict[str, int] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    trials: int = 0
    passes: float = 0.0
    notes: list[str] = field(default_factory=list)
    savings: Savings = field(default_factory=Savings)
    screen: Screen = field(default_factory=Screen)
    began: float = field(default_factory=time.monotonic)

    def begin(self, schedule: Schedule) -> Dialogue:
        """Open the dialogue with a schedule, which checks its options now, before anything costs time."""
        return Dialogue(schedule, self.describe_problem())

    def describe_problem(self) -> Problem:
        """What a schedule knows of the model."""
        return Problem(
            components=tuple(self.model.components.values()),
            offers=self.treatments.offers(self.model),
            better={name: metric.better for name, metric in self.metrics.items()},
            tokens=self.tokens,
            seed=self.seed,
            estimable=frozenset(name for name, metric in self.metrics.items() if isinstance(metric, EstimableMetric)),
            prefixes=self.prefixes,
            stored_bytes=self.model.stored_bytes,
        )

    def run(self, dialogue: Dialogue) -> None:
        """Answer the schedule until it is done."""
        self.began = time.monotonic()
        while (request := dialogue.propose()) is not None:
            dialogue.tell(self.answer(request))
        if not self.rounds:
            raise ConfigError("the schedule kept no plan; check its options")

    def answer(self, request: Request) -> Any:  # noqa: ANN401 - each request says what its answer is
        """Do what a request asks for."""
        match request:
            case ScoreRequest():
                return self.score_trials(request)
            case BestRequest():
                return find_best(self, request)
            case EstimateRequest():
                return self.estimate(request)
            case SizeRequest():
                return self.treatments.sizes(self.model, request.options, self.packed_bits)
            case CountRequest():
                return self.treatments.count(self.model, request.compressor, request.thresholds)
            case KeepRequest():
                return self.keep(request)

    def score_trials(self, request: ScoreRequest) -> tuple[dict[str, Score], ...]:
        """Score each trial exactly."""
        trials = [self.make_trial(plan) for plan in request.trials]
        found = self.sweeps[request.prefixes].score(trials, request.metrics, request.start, request.stop)
        description = f"round {len(self.rounds) + 1}: scoring trials"
        answers, began = dict[int, dict[str, Score]](), time.monotonic()
        for number, statistics in self.progress.track(found, description, len(trials)):
            scores = answers[number] = self.summarize(statistics)
            self.note_trial(request.trials[number], request.prefixes, scores, time.monotonic() - began)
            began = time.monotonic()
        self.trials += len(trials)
        if request.prefixes is Prefixes.SEARCH:
            self.spend(len(trials), request.start, request.stop)
        return tuple(answers[number] for number in range(len(trials)))

    def note_trial(self, plan: Plan, prefixes: Prefixes, scores: Scores, seconds: float) -> None:
        """A line in scores.jsonl, where rows are but said to be there."""
        line = {
            "round": len(self.rounds) + 1,
            "prefixes": prefixes.value,
            "plan": plan_to_json(plan),
            "scores": {name: score.to_json() for name, score in scores.items()},
            "seconds": seconds,
        }
        append_json_line(self.folder / "scores.jsonl", line)

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """Predict, or measure, what options do on the search prefixes."""
        if request.measured:
            return self.measure(request)
        objective, sweep = self.metrics[request.objective], self.sweeps[Prefixes.SEARCH]
        if not isinstance(objective, EstimableMetric):
            raise ConfigError(f"metric `{request.objective}` cannot be estimated; measure it, or choose another")
        sensitivity = Sensitivity(self.model, sweep.reference, self.treatments, objective, not self.kept, self.seed)
        description = f"round {len(self.rounds) + 1}: estimating options"
        answer = watch(self.progress, description, lambda: sensitivity.estimate(request))
        self.spend(sensitivity.walks(request) * PASSES_OF_WALK, request.start, request.stop)
        return answer

    def measure(self, request: EstimateRequest) -> dict[str, Estimate]:
        """The same answer from a trial for each option: the difference of the objective's first statistic."""
        metrics, trials = (request.objective,), list_measured(request)
        made = [self.make_trial(plan) for plan in trials]
        description = f"round {len(self.rounds) + 1}: measuring options"
        scored = self.sweeps[Prefixes.SEARCH].score(made, metrics, request.start, request.stop)
        found = dict(self.progress.track(scored, description, len(made)))
        now, *values = (found[number][request.objective][:, 0] for number in range(len(made)))
        self.trials += len(trials)
        self.spend(len(trials), request.start, request.stop)
        answer, start = {}, 0
        for name, options in request.options.items():
            stop = start + len(options)
            answer[name] = Estimate(np.stack([value - now for value in values[start:stop]], axis=1))
            start = stop
        return answer

    def spend(self, passes: float, start: int, stop: int | None) -> None:
        """Add passes over the search prefixes from `start` to `stop` to the cost of the round."""
        self.passes += passes * share_prefixes(self.prefixes, start, stop)

    def make_trial(self, plan: Plan) -> Trial:
        return Trial({name: partial(self.make_weight, name, treatment) for name, treatment in plan.items()})

    def make_weight(self, name: str, treatment: Treatment) -> Tensor:
        return self.treatments.compress(self.model, {name: treatment})[name].dense()

    def summarize(self, statistics: Statistics) -> dict[str, Score]:
        return {name: summarize(self.metrics[name], rows, self.seed) for name, rows in statistics.items()}

    def keep(self, request: KeepRequest) -> dict[str, float]:
        """Put a plan on the model, score it on the search prefixes, close the round."""
        plan = self.treatments.fill_options(request.plan)
        for name, weight in self.treatments.compress(self.model, plan).items():
            self.model.write(name, weight.dense())
            self.packed_bits[name] = weight.bits
        self.kept.update(plan)
        statistics = self.sweeps[Prefixes.SEARCH].score_current()
        round_record = RoundRecord(
            target=request.target,
            amount=mean_amount(self.model.components, self.kept),
            scores=self.summarize(statistics),
            trials=self.trials,
            seconds=time.monotonic() - self.began,
            passes=self.passes,
            curve=[self.describe_waypoint(waypoint) for waypoint in request.curve],
        )
        saved = self.savings.describe()
        self.notes.extend([*request.notes, *([saved] if saved else [])])
        self.trials, self.passes, self.began = 0, 0.0, time.monotonic()
        self.savings, self.screen = Savings(), Screen()
        self.rounds.append(round_record)
        self.on_round(len(self.rounds), round_record)
        self.progress.say(f"round {len(self.rounds)} kept: amount {round_record.amount:.3f}")
        return {name: amount_of(self.kept, name) for name in self.model.components}

    def describe_waypoint(self, waypoint: Waypoint) -> CurvePoint:
        """As it is recorded."""
        share = treated_share(self.model.components, waypoint.plan)
        return CurvePoint(len(waypoint.plan), share, waypoint.metric, waypoint.value, plan_to_json(waypoint.plan))


def list_measured(request: EstimateRequest) -> list[Plan]:
    """The trials by which estimates are measured: the plan that they start from, then each option of each component."""
    trials = [request.at]
    for name, options in request.options.items():
        others = {other: treatment for other, treatment in request.at.items() if other != name}
        trials += [others if option is None else {**others, name: option} for option in options]
    return trials


def share_prefixes(prefixes: int, start: int, stop: int | None) -> float:
    """The share of so many prefixes that lie between `start` and `stop`."""
    return len(range(prefixes)[start:stop]) / prefixes
