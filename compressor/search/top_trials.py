"""Which trials are best: all are scored, or, in the approximate mode, only those that may be; the rest is audited."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Best, BestRequest, Metric, Plan, Prefixes, Score, ScoreRequest
from compressor.racing import Contender, list_stops, make_contender, make_race
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
        return Selection(scorer, request).answer()
    scores = scorer.score_trials(ScoreRequest(request.trials, (request.metric,)))
    return choose_best(request, scorer.metrics[request.metric].better, scores)


@dataclass
class Selection:
    """One approximate answer: batches in order of what they can be at best, each a race, and then the audit.

    `statistics` `[sequence, statistic]` of each trial are on its first prefixes, as far as it came; `scores` are of
    those that came through all. What is dropped, and what that missed, is added to the scorer's `savings`.
    """

    scorer: Scorer
    request: BestRequest
    statistics: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    scores: dict[int, dict[str, Score]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

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
            totals.raced += self.race(batch)
        skipped = sum(self.is_beaten(self.bound(index)) for index in waiting)
        totals.skipped += skipped
        totals.screened += len(waiting) - skipped
        self.audit()
        totals.measured += len(self.scores)
        totals.violations += sum(self.value(index) > self.bound(index) for index in self.scores)
        return self.choose()

    def choose(self) -> Best:
        """The best of what was measured on all prefixes so far."""
        return choose_best(self.request, self.metric.better, [self.scores.get(i) for i in self.indices])

    @property
    def indices(self) -> range:
        return range(len(self.request.trials))

    def value(self, index: int) -> float:
        """What decides, the larger the better, of a trial that was measured on all prefixes."""
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

    def race(self, batch: Sequence[int]) -> int:
        """Measure a batch block by block; how many were dropped on the way."""
        stops, settings = self.list_stops(), self.scorer.settings
        limits = self.metric.value_range(self.scorer.tokens) if self.request.statistic == "mean" else None
        width = None if limits is None else limits[1] - limits[0]
        race = make_race(
            self.request.count, len(self.indices), len(stops) - 1, settings.delta, width, settings.tolerance
        )
        alive = [*batch]
        for stop in stops:
            self.measure(alive, stop)
            if stop == stops[-1]:
                break
            known = list(dict.fromkeys([*self.choose().chosen, *alive]))
            beaten = race.find_beaten([self.contender(index, stop) for index in known], stop)
            out = {index for index, is_beaten in zip(known, beaten, strict=True) if is_beaten}
            alive = [index for index in alive if index not in out]
        return len(batch) - len(alive)

    def list_stops(self) -> list[int]:
        """Where blocks of prefixes end.

        A metric on text has all of its windows at once; so has what a screen chooses, for it learns from whole values.
        """
        settings = self.scorer.settings
        if not settings.racing or settings.screen is not None or self.metric.text() is not None:
            return [self.scorer.prefixes]
        return list_stops(self.scorer.prefixes)

    def contender(self, index: int, stop: int) -> Contender:
        """What is known of a trial on the first prefixes."""
        statistics = self.statistics[index][:stop]
        return make_contender(self.metric, statistics, self.request.statistic, self.scorer.seed)

    def measure(self, indices: Sequence[int], stop: int) -> None:
        """Bring trials up to `stop` prefixes from where they are, together those that are equally far."""
        for start in sorted({self.reached(index) for index in indices}):
            chosen = [index for index in indices if self.reached(index) == start]
            for index, statistics, seconds in self.score(chosen, start, stop):
                before = [self.statistics[index]] if index in self.statistics else []
                self.statistics[index] = np.concatenate([*before, statistics])
                self.seconds[index] = self.seconds.get(index, 0.0) + seconds
            self.scorer.trials += len(chosen) if start == 0 else 0
            self.scorer.spend(len(chosen), start, stop)
        if stop == self.scorer.prefixes:
            for index in indices:
                self.finish(index)

    def reached(self, index: int) -> int:
        return len(self.statistics.get(index, ()))

    def score(self, indices: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float64], float]]:
        """(trial, statistics, seconds) of each trial on some prefixes, as they come."""
        scorer, name = self.scorer, self.request.metric
        trials = [scorer.make_trial(self.request.trials[index]) for index in indices]
        found = scorer.sweeps[Prefixes.SEARCH].score(trials, (name,), start, stop)
        description = f"round {scorer.round}: looking for the best"
        began = time.monotonic()
        for number, statistics in scorer.progress.track(found, description, len(trials)):
            yield indices[number], statistics[name], time.monotonic() - began
            began = time.monotonic()

    def finish(self, index: int) -> None:
        """Score a trial that was measured on all prefixes, with its line in scores.jsonl."""
        scores = self.scores[index] = self.scorer.summarize({self.request.metric: self.statistics[index]})
        self.scorer.note_trial(self.request.trials[index], Prefixes.SEARCH, scores, self.seconds[index])
        self.scorer.screen.note(self.what, self.request.trials[index], self.value(index))

    def audit(self) -> None:
        """Measure some of the dropped trials all the same: do they belong among the best?"""
        totals, scorer = self.scorer.savings, self.scorer
        dropped = [index for index in self.indices if index not in self.scores]
        rng = np.random.default_rng([scorer.seed, scorer.round - 1, totals.questions])
        chosen: list[int] = sorted(rng.permutation(np.array(dropped, dtype=int))[: scorer.settings.audit].tolist())
        self.measure(chosen, scorer.prefixes)
        totals.audited += len(chosen)
        totals.missed += len({*chosen} & {*self.choose().chosen})
