"""Which trials are best: all are scored, or, in the approximate mode, only those that may be, and an audit."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.contracts import Best, BestRequest, Metric, Plan, Score, ScoreRequest
from compressor.search.best import check_request, choose_best
from compressor.search.trial_scoring import Scorer
from compressor.settings import SweepMode

BATCH = 8
"""Trials at a time, at least, where bounds say in which order: the engine shares work among them."""
SOUNDINGS = 4
"""Trials that are not predicted to be among the best, measured to learn how far predictions are off."""


def find_best(scorer: Scorer, request: BestRequest) -> Best:
    """Answer a BestRequest as the run's settings want it; raises PluginError for a request that makes no sense."""
    check_request(request)
    if scorer.settings.mode is SweepMode.approximate:
        return BestTrials(scorer, request).answer()
    scores = scorer.score_trials(ScoreRequest(request.trials, (request.metric,)))
    return choose_best(request, scorer.metrics[request.metric].better, scores)


@dataclass
class BestTrials:
    """One approximate answer: trials are measured in batches, those with the best bounds first; then comes the audit.

    `scores` are of the measured trials. The scorer's `savings` count what was dropped, and what that missed.
    """

    scorer: Scorer
    request: BestRequest
    scores: dict[int, dict[str, Score]] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        return self.scorer.metrics[self.request.metric]

    @property
    def sign(self) -> float:
        return self.metric.better.sign

    @property
    def what(self) -> str:
        """What is measured."""
        return f"{self.request.metric} {self.request.statistic}"

    def answer(self) -> Best:
        """Measure what may be among the best, and some of the rest."""
        totals = self.scorer.savings
        totals.questions += 1
        totals.trials += len(self.request.trials)
        waiting = [*self.indices]
        while batch := self.choose_next(waiting):
            waiting = [index for index in waiting if index not in batch]
            self.measure(batch)
        skipped = sum(self.is_beaten(self.bound(index)) for index in waiting)
        totals.skipped += skipped
        totals.screened += len(waiting) - skipped
        self.audit()
        totals.measured += len(self.scores)
        totals.violations += sum(self.value(index) > self.bound(index) for index in self.scores)
        return self.choose()

    def choose(self) -> Best:
        """The best of what was measured so far."""
        return choose_best(self.request, self.metric.better, [self.scores.get(i) for i in self.indices])

    @property
    def indices(self) -> range:
        return range(len(self.request.trials))

    def value(self, index: int) -> float:
        """The value by which a measured trial is compared, the larger the better."""
        return self.sign * self.scores[index][self.request.metric].statistic(self.request.statistic)

    def bound(self, index: int) -> float:
        """The largest value that a trial can have by what the schedule knows; infinite where it knows nothing."""
        given = self.request.bounds[index] if self.request.bounds and self.scorer.settings.lazy else None
        return np.inf if given is None or np.isnan(given) else self.sign * given

    def is_beaten(self, bound: float) -> bool:
        """Are the best so far at least as good as what has this bound, or worse by so little that it may be?"""
        if len(self.scores) < self.request.count:
            return False
        last = self.value(self.choose().chosen[-1])
        return last + self.scorer.settings.tolerance * abs(last) >= bound

    def choose_next(self, waiting: Sequence[int]) -> list[int]:
        """Which trials to measure next: all of which nothing is known, else a few of the best bounds; none at last."""
        scorer, settings, count = self.scorer, self.scorer.settings, max(self.request.count, BATCH)
        bounds = {index: self.bound(index) for index in waiting}
        if settings.screen is not None and len(waiting) > self.request.count:
            level = settings.delta / len(self.indices)
            learned = scorer.screen.bound(self.what, self.list_trials(waiting), settings.screen, level, scorer.estimate)
            if learned is None:
                return self.sound(waiting, count)
            bounds = {index: min(bounds[index], limit) for index, limit in zip(waiting, learned, strict=True)}
        order = sorted(waiting, key=lambda index: (-bounds[index], index))
        if not order or self.is_beaten(bounds[order[0]]):
            return []
        return order[: sum(bound == np.inf for bound in bounds.values()) or count]

    def sound(self, waiting: Sequence[int], count: int) -> list[int]:
        """Those that are predicted to be the best, and some of the others, from the next ones to the worst."""
        screen = self.scorer.settings.screen
        assert screen is not None
        changes = self.scorer.screen.predict(self.list_trials(waiting), screen, self.scorer.estimate)
        order = np.argsort(changes, kind="stable")  # an estimable metric grows with the change: the lower the better
        places = np.linspace(count, len(order) - 1, SOUNDINGS).astype(int) if len(order) > count + SOUNDINGS else ()
        return [waiting[place] for place in (*order[:count], *order[[*places]])]

    def list_trials(self, indices: Sequence[int]) -> list[Plan]:
        return [self.request.trials[index] for index in indices]

    def measure(self, indices: Sequence[int]) -> None:
        """Score trials on all search prefixes, and let the screen learn from them."""
        if not indices:
            return
        trials = self.list_trials(indices)
        found = self.scorer.score_trials(ScoreRequest(trials, (self.request.metric,)))
        for index, plan, scores in zip(indices, trials, found, strict=True):
            self.scores[index] = scores
            self.scorer.screen.note(self.what, plan, self.value(index))

    def audit(self) -> None:
        """Measure some of the dropped trials too: do they belong among the best?"""
        totals, scorer = self.scorer.savings, self.scorer
        dropped = [index for index in self.indices if index not in self.scores]
        rng = np.random.default_rng([scorer.seed, scorer.round - 1, totals.questions])
        chosen: list[int] = sorted(rng.permutation(np.array(dropped, dtype=int))[: scorer.settings.audit].tolist())
        self.measure(chosen)
        totals.audited += len(chosen)
        totals.missed += len({*chosen} & {*self.choose().chosen})
