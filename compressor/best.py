"""Which trials are best: all are scored, or, in the approximate mode, only those that may be; the rest is audited."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Best, BestRequest, Metric, Prefixes, ScoreRequest
from compressor.errors import PluginError
from compressor.racing import PERCENTILES, Contender, list_stops, make_contender, make_race
from compressor.settings import SweepMode
from compressor.values import Better, Score, Scores

if TYPE_CHECKING:
    from compressor.search import Search

BATCH = 8
"""Trials at a time, at least, where bounds say in which order: the engine shares work among them."""


def find_best(search: "Search", request: BestRequest) -> Best:
    """Answer a BestRequest as the run's settings want it; raises PluginError for a request that makes no sense."""
    check_request(request)
    if search.settings.mode is SweepMode.approximate:
        return Selection(search, request).answer()
    scores = search.score_trials(ScoreRequest(request.trials, (request.metric,)))
    return choose_best(request, search.metrics[request.metric].better, scores)


def check_request(request: BestRequest) -> None:
    """Raise PluginError for numbers that do not fit one another."""
    if request.count < 1:
        raise PluginError(f"a request for the best needs a `count` of at least 1, got {request.count}; ask for one")
    if request.statistic != "mean" and request.statistic not in PERCENTILES:
        known = ", ".join(["mean", *PERCENTILES])
        raise PluginError(f"`statistic` must be one of {known}, got `{request.statistic}`; ask for one of these")
    if request.bounds and len(request.bounds) != len(request.trials):
        raise PluginError(
            f"`bounds` must have one for each of {len(request.trials)} trials, got {len(request.bounds)}; None is one"
        )


def choose_best(request: BestRequest, better: Better, scores: Sequence[Scores | None]) -> Best:
    """The best of those that have scores; ties go to the lower index, values that are not numbers last."""
    values = {
        index: better.sign * found[request.metric].statistic(request.statistic)
        for index, found in enumerate(scores)
        if found is not None
    }
    order = sorted(values, key=lambda index: (np.isnan(values[index]), -values[index], index))
    return Best(tuple(order[: request.count]), tuple(scores))


@dataclass
class Selection:
    """One approximate answer: the screen, then batches in order of their bounds, each a race, then the audit.

    `statistics` `[sequence, statistic]` of each trial are on its first prefixes, as far as it came; `scores` are of
    those that came through all. What is dropped, and what that missed, is added to the search's `savings`.
    """

    search: "Search"
    request: BestRequest
    statistics: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    scores: dict[int, dict[str, Score]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        return self.search.metrics[self.request.metric]

    @property
    def sign(self) -> float:
        return self.metric.better.sign

    def answer(self) -> Best:
        """Measure what may be among the best, and some of the rest."""
        totals = self.search.savings
        totals.questions += 1
        totals.trials += len(self.request.trials)
        left = self.screen()
        totals.screened += len(self.request.trials) - len(left)
        waiting = sorted(left, key=lambda index: (-self.bound(index), index))
        while waiting and not self.is_settled(waiting):
            batch = waiting[: self.count_next(waiting)]
            waiting = waiting[len(batch) :]
            totals.raced += self.race(batch, len(left))
        totals.skipped += len(waiting)
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
        """The largest value that a trial can have as far as is known; infinite where nothing is known."""
        given = self.request.bounds[index] if self.request.bounds else None
        return np.inf if given is None or np.isnan(given) else self.sign * given

    def screen(self) -> list[int]:
        """The trials that are not predicted to be worse than the best."""
        settings, search = self.search.settings, self.search
        if settings.screen is None or len(self.request.trials) <= self.request.count:
            return [*self.indices]
        beaten = search.screen.find_beaten(
            self.request.trials, settings.screen, self.request.count, settings.delta, search.estimate
        )
        return np.flatnonzero(~beaten).tolist()

    def is_settled(self, waiting: Sequence[int]) -> bool:
        """Are the best so far at least as good as any of the others could be?"""
        if not self.search.settings.lazy or len(self.scores) < self.request.count:
            return False
        return self.value(self.choose().chosen[-1]) >= self.bound(waiting[0])

    def count_next(self, waiting: Sequence[int]) -> int:
        """How many to measure next: all of which nothing is known, else a few of the best bounds."""
        if not self.search.settings.lazy:
            return len(waiting)
        return sum(self.bound(index) == np.inf for index in waiting) or max(self.request.count, BATCH)

    def race(self, batch: Sequence[int], trials: int) -> int:
        """Measure a batch block by block; how many were dropped on the way. `trials` take part over all batches."""
        stops, settings = self.list_stops(), self.search.settings
        width = self.metric.value_range(self.search.tokens) if self.request.statistic == "mean" else None
        race = make_race(
            self.request.count, trials, len(stops) - 1, settings.delta, None if width is None else width[1] - width[0]
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
        """Where blocks of prefixes end; a metric on text has all of its windows at once."""
        if not self.search.settings.racing or self.metric.text() is not None:
            return [self.search.prefixes]
        return list_stops(self.search.prefixes)

    def contender(self, index: int, stop: int) -> Contender:
        """What is known of a trial on the first prefixes."""
        statistics = self.statistics[index][:stop]
        return make_contender(self.metric, statistics, self.request.statistic, self.search.seed)

    def measure(self, indices: Sequence[int], stop: int) -> None:
        """Bring trials up to `stop` prefixes from where they are, together those that are equally far."""
        for start in sorted({self.reached(index) for index in indices}):
            chosen = [index for index in indices if self.reached(index) == start]
            for index, statistics, seconds in self.score(chosen, start, stop):
                before = [self.statistics[index]] if index in self.statistics else []
                self.statistics[index] = np.concatenate([*before, statistics])
                self.seconds[index] = self.seconds.get(index, 0.0) + seconds
            self.search.trials += len(chosen) if start == 0 else 0
            self.search.spend(len(chosen), start, stop)
        if stop == self.search.prefixes:
            for index in indices:
                self.finish(index)

    def reached(self, index: int) -> int:
        return len(self.statistics.get(index, ()))

    def score(self, indices: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float64], float]]:
        """(trial, statistics, seconds) of each trial on some prefixes, as they come."""
        search, name = self.search, self.request.metric
        trials = [search.make_trial(self.request.trials[index]) for index in indices]
        found = search.sweeps[Prefixes.SEARCH].score(trials, (name,), start, stop)
        description = f"round {len(search.rounds) + 1}: looking for the best"
        began = time.monotonic()
        for number, statistics in search.progress.track(found, description, len(trials)):
            yield indices[number], statistics[name], time.monotonic() - began
            began = time.monotonic()

    def finish(self, index: int) -> None:
        """Score a trial that was measured on all prefixes, with its line in scores.jsonl."""
        scores = self.scores[index] = self.search.summarize({self.request.metric: self.statistics[index]})
        self.search.note_trial(self.request.trials[index], Prefixes.SEARCH, scores, self.seconds[index])

    def audit(self) -> None:
        """Measure some of the dropped trials all the same: do they belong among the best?"""
        totals, search = self.search.savings, self.search
        dropped = [index for index in self.indices if index not in self.scores]
        rng = np.random.default_rng([search.seed, len(search.rounds), totals.questions])
        chosen: list[int] = sorted(rng.permutation(np.array(dropped, dtype=int))[: search.settings.audit].tolist())
        self.measure(chosen, search.prefixes)
        totals.audited += len(chosen)
        totals.missed += len({*chosen} & {*self.choose().chosen})
