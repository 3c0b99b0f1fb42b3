"""Finds the best of many trials. The approximate mode measures only those that may be among the best.

It measures trials in batches, those with the best bounds first. Bounds come from the schedule, and from a surrogate
that learns from the measured trials. An audit measures some of the trials that were left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.contracts import Best, BestRequest, Plan, ScoreRequest, Scores
from compressor.search.estimating import Estimator
from compressor.search.ranking import choose_best
from compressor.search.surrogate import Surrogate
from compressor.search.trial_scoring import TrialScorer
from compressor.settings import SweepMode, SweepSettings

BATCH = 8
"""The smallest number of trials that are measured together by bound, because the engine shares work among them."""
SOUNDINGS = 4
"""Trials with worse predictions that are measured too, to learn the size of the prediction error."""


@dataclass
class TopTrials:
    """Finds the best trials, exactly or approximately by `settings`; has a new surrogate in each round."""

    scorer: TrialScorer
    estimator: Estimator
    settings: SweepSettings
    surrogate: Surrogate = field(default_factory=Surrogate)
    round: int = 1

    def find(self, request: BestRequest) -> Best:
        """The best trials."""
        if self.round != self.scorer.ledger.round:  # the model has changed, and so have the effects of treatments
            self.surrogate, self.round = Surrogate(), self.scorer.ledger.round
        if self.settings.mode is SweepMode.approximate:
            return Approximation(self, request).answer()
        scores = self.scorer.score(ScoreRequest(request.trials, (request.metric,)))
        return choose_best(request, self.scorer.metrics[request.metric].better, scores)


class Approximation:
    """One approximate answer. `scores` are those of the measured trials, by index.

    The ledger counts the trials that were left out and the results of the audit. `quantity` is the name of the value by
    which trials are ranked.
    """

    def __init__(self, finder: TopTrials, request: BestRequest) -> None:
        self.request, self.settings, self.surrogate = request, finder.settings, finder.surrogate
        self.scorer, self.estimate = finder.scorer, finder.estimator.estimate
        self.ledger, self.better = finder.scorer.ledger, finder.scorer.metrics[request.metric].better
        self.quantity = f"{request.metric} {request.statistic}"
        self.indices = range(len(request.trials))
        self.scores: dict[int, Scores] = {}

    def answer(self) -> Best:
        """Measure the trials that may be among the best, and some of the rest."""
        totals = self.ledger.approximation
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
        """The best of the trials that were measured so far."""
        return choose_best(self.request, self.better, [self.scores.get(index) for index in self.indices])

    def value(self, index: int) -> float:
        """The value by which a measured trial is ranked; larger is better."""
        return self.better.sign * self.scores[index][self.request.metric].statistic(self.request.statistic)

    def bound(self, index: int) -> float:
        """The schedule's upper bound of the value of a trial; infinite if there is none."""
        given = self.request.bounds[index] if self.request.bounds and self.settings.lazy else None
        return np.inf if given is None or np.isnan(given) else self.better.sign * given

    def is_beaten(self, bound: float) -> bool:
        """Whether enough measured trials are at least as good as this bound, up to the tolerance."""
        if len(self.scores) < self.request.count:
            return False
        last = self.value(self.choose().chosen[-1])
        return last + self.settings.tolerance * abs(last) >= bound

    def choose_next(self, waiting: Sequence[int]) -> list[int]:
        """The trials to measure next: all without a bound, else those with the best bounds; empty at the end."""
        settings, count = self.settings, max(self.request.count, BATCH)
        bounds = {index: self.bound(index) for index in waiting}
        if settings.screen is not None and len(waiting) > self.request.count:
            level, trials = settings.delta / len(self.indices), self.list_trials(waiting)
            learned = self.surrogate.bound(self.quantity, trials, settings.screen, level, self.estimate)
            if learned is None:
                return self.choose_first(waiting, count, settings.screen)
            bounds = {index: min(bounds[index], limit) for index, limit in zip(waiting, learned, strict=True)}
        order = sorted(waiting, key=lambda index: (-bounds[index], index))
        if not order or self.is_beaten(bounds[order[0]]):
            return []
        return order[: sum(bound == np.inf for bound in bounds.values()) or count]

    def choose_first(self, waiting: Sequence[int], count: int, screen: str) -> list[int]:
        """The trials with the best predictions, and some others, evenly spaced down to the worst."""
        changes = self.surrogate.predict(self.list_trials(waiting), screen, self.estimate)
        order = np.argsort(changes, kind="stable")  # for an estimable metric a lower change is better
        places = np.linspace(count, len(order) - 1, SOUNDINGS).astype(int) if len(order) > count + SOUNDINGS else ()
        return [waiting[place] for place in (*order[:count], *order[[*places]])]

    def list_trials(self, indices: Sequence[int]) -> list[Plan]:
        return [self.request.trials[index] for index in indices]

    def measure(self, indices: Sequence[int]) -> None:
        """Score trials on all search prefixes, and add them to the surrogate."""
        if not indices:
            return
        trials = self.list_trials(indices)
        found = self.scorer.score(ScoreRequest(trials, (self.request.metric,)))
        for index, plan, scores in zip(indices, trials, found, strict=True):
            self.scores[index] = scores
            self.surrogate.note(self.quantity, plan, self.value(index))

    def audit(self) -> None:
        """Measure some of the trials that were left out, and count those that belong among the best."""
        totals, ledger = self.ledger.approximation, self.ledger
        left_out = np.array([index for index in self.indices if index not in self.scores], dtype=int)
        rng = np.random.default_rng([self.scorer.seed, ledger.round - 1, totals.questions])
        chosen: list[int] = sorted(rng.permutation(left_out)[: self.settings.audit].tolist())
        self.measure(chosen)
        totals.audited += len(chosen)
        totals.missed += len({*chosen} & {*self.choose().chosen})
