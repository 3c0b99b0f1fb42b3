"""Scores trials on the model, writes each to scores.jsonl, and counts the costs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts.answers import Answers, list_facts
from compressor.artifacts.files import append_json_line
from compressor.artifacts.plan_file import plan_to_json
from compressor.artifacts.run_folder import claim_files
from compressor.contracts import Metric, Plan, Prefixes, Score, ScoreRequest, Scores, ValuesRequest
from compressor.evaluation.bootstrap import summarize
from compressor.evaluation.evaluator import Evaluator, SequenceValues
from compressor.progress import Progress
from compressor.search.ledger import Ledger


@dataclass
class TrialScorer:
    """Scores trials of a model against the base's continuations of the search or proof prefixes.

    `evaluators` are added when the references are built. Each scored trial is a line of scores.jsonl in `folder`.
    `answers` has the values of an interrupted run, which are not computed again.
    """

    evaluators: Mapping[Prefixes, Evaluator]
    metrics: Mapping[str, Metric]
    ledger: Ledger
    progress: Progress
    folder: Path
    seed: int = 0
    answers: Answers = field(default_factory=Answers)

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        """The scores of each trial."""
        return tuple(scores for _, scores in self._run(request))

    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        """For each trial: metric -> first values per sequence, `[sequence]`."""
        return tuple({name: rows[:, 0] for name, rows in values.items()} for values, _ in self._run(request))

    def measure(self, trials: Sequence[Plan], metric: str, start: int, stop: int | None) -> list[NDArray[np.float64]]:
        """First values per sequence of each trial on search prefixes; no lines are written."""
        description = f"round {self.ledger.round}: measuring options"
        scored = self._score(Prefixes.SEARCH, trials, (metric,), start, stop)
        found = dict(self.progress.track(scored, description, len(trials)))
        self.ledger.trials += len(trials)
        self.ledger.spend(len(trials), start, stop)
        return [found[number][metric][:, 0] for number in range(len(trials))]

    def score_kept(self, prefixes: Prefixes) -> SequenceValues:
        """Values per sequence, by metric, of the current model."""
        ((_, values),) = self._score(prefixes, [{}], None, 0, None)
        return values

    def summarize(self, values: SequenceValues) -> dict[str, Score]:
        """Scores from values per sequence."""
        return {name: summarize(self.metrics[name], rows, self.seed) for name, rows in values.items()}

    def _run(self, request: ScoreRequest | ValuesRequest) -> list[tuple[SequenceValues, dict[str, Score]]]:
        """Values per sequence and scores of each trial, in order; so are their lines, in whatever order they come."""
        count, noted = len(request.trials), 0
        scored = self._score(request.prefixes, request.trials, request.metrics, request.start, request.stop)
        answers: dict[int, tuple[SequenceValues, dict[str, Score]]] = {}
        seconds: dict[int, float] = {}
        began = time.monotonic()
        for number, values in self.progress.track(scored, f"round {self.ledger.round}: scoring trials", count):
            seconds[number] = time.monotonic() - began
            answers[number] = values, self.summarize(values)
            while noted in answers:
                self._note(request.trials[noted], request.prefixes, answers[noted][1], seconds[noted])
                noted += 1
            began = time.monotonic()
        self.ledger.trials += count
        if request.prefixes is Prefixes.SEARCH:
            self.ledger.spend(count, request.start, request.stop)
        return [answers[number] for number in range(count)]

    def _score(
        self, prefixes: Prefixes, trials: Sequence[Plan], names: Sequence[str] | None, start: int, stop: int | None
    ) -> Iterator[tuple[int, SequenceValues]]:
        """Number and per-sequence values of each trial as they come: first those that were computed before."""
        question = (prefixes.value, sorted(names or self.metrics), start, stop)
        keys = [self.answers.make_key("trial", *question, list_facts(trial)) for trial in trials]
        left = []
        for number, key in enumerate(keys):
            if (known := self.answers.find(key)) is None:
                left.append(number)
            else:
                yield number, known.arrays
        for group in self.evaluators[prefixes].score([trials[number] for number in left], names, start, stop):
            for place, values in group.items():
                self.answers.add(keys[left[place]], values)
            self.answers.pause()
            yield from ((left[place], values) for place, values in group.items())

    def _note(self, plan: Plan, prefixes: Prefixes, scores: Scores, seconds: float) -> None:
        """Append a line to scores.jsonl, without amounts per row."""
        line = {
            "round": self.ledger.round,
            "prefixes": prefixes.value,
            "plan": plan_to_json(plan),
            "scores": {name: score.to_json() for name, score in scores.items()},
            "seconds": seconds,
        }
        claim_files(self.folder, ["scores.jsonl"])
        append_json_line(self.folder / "scores.jsonl", line)
