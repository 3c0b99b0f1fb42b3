"""Ends a round: applies the plan to the model, scores it on the search prefixes, and records the round."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from compressor.artifacts.answers import list_facts
from compressor.artifacts.plan_file import plan_to_json
from compressor.artifacts.run_record import CurvePoint, RecoveryRecord, RoundRecord
from compressor.compression.amounts import amount_of, mean_amount, treated_share
from compressor.contracts import KeepRequest, Prefixes, QuantizedMatrix, Score, Waypoint
from compressor.evaluation.evaluator import SequenceValues
from compressor.progress import Progress
from compressor.search.additivity import StartingValues
from compressor.search.applied_plan import AppliedPlan
from compressor.search.trial_scoring import TrialScorer

NOT_KEPT = (
    "Recovery made every metric worse after round {}, so the weights are those before it; train longer or slower."
)


class Recoverer(Protocol):
    """Trains the model after a round."""

    def train(self, number: int, before: dict[str, Score]) -> RecoveryRecord:
        """Train after the round `number`, whose plan had the scores `before`."""

    def end(self, is_kept: bool) -> Mapping[str, QuantizedMatrix]:
        """Keep what was trained, or go back to the weights before it; returns quantized components with new scales."""


@dataclass
class Rounds:
    """`records` has a record of each round that ended; amounts are cumulative. `notes` are sentences for the user.

    `recoverer` trains the model after each round. `on_round` is called with the number and the record of each round.
    `most_bytes` is the schedule's limit of the exported weight files, or None.
    """

    applied: AppliedPlan
    scorer: TrialScorer
    starting_values: StartingValues
    on_round: Callable[[int, RoundRecord], None]
    records: list[RoundRecord]
    notes: list[str]
    progress: Progress
    recoverer: Recoverer | None = None
    most_bytes: int | None = field(default=None, init=False)

    def keep(self, request: KeepRequest) -> dict[str, float]:
        """Apply a plan to the model, score it and record the round; returns the amount of every component."""
        applied, ledger = self.applied, self.scorer.ledger
        components = applied.model.components
        plan = applied.treatments.fill_options(request.plan)
        applied.apply(plan, request.last and self.recoverer is None)
        self.scorer.answers.enter("keep", list_facts(plan))
        self.most_bytes = request.most_bytes
        values = self.scorer.score_kept(Prefixes.SEARCH)
        additivity, recovery = self.starting_values.close_round(request.singles, values), None
        if self.recoverer is not None:
            values, recovery = self._recover(self.recoverer, values)
            applied.end_training(request.last)
        record = RoundRecord(
            target=request.target,
            amount=mean_amount(components, applied.kept),
            scores=self.scorer.summarize(values),
            trials=ledger.trials,
            seconds=time.monotonic() - ledger.began,
            passes=ledger.passes,
            curve=[self._describe_waypoint(waypoint) for waypoint in request.curve],
            additivity=additivity,
            recovery=recovery,
        )
        self.notes.extend([*request.notes, *ledger.describe()])
        self.records.append(record)
        ledger.open_round(len(self.records) + 1)
        self.on_round(len(self.records), record)
        ratio = "" if record.additivity is None else f", additivity {record.additivity:z.2f}"
        self.progress.say(f"round {len(self.records)} kept: amount {record.amount:z.3f}{ratio}")
        return {name: amount_of(applied.kept, name) for name in components}

    def _recover(self, recoverer: Recoverer, values: SequenceValues) -> tuple[SequenceValues, RecoveryRecord]:
        """Train the model, which has these values; returns its values then, and what was done.

        If every metric got worse, the weights are those before.
        """
        number, before = len(self.records) + 1, self.scorer.summarize(values)
        record = recoverer.train(number, before)
        self.applied.end_training(is_last=False)
        trained = self.scorer.score_kept(Prefixes.SEARCH)
        after = self.scorer.summarize(trained)
        signs = {name: metric.better.sign for name, metric in self.scorer.metrics.items()}
        record.is_kept = any(signs[name] * (after[name].mean - before[name].mean) > 0 for name in before)
        self.applied.quantized.update(recoverer.end(record.is_kept))
        if not record.is_kept:
            self.notes.append(NOT_KEPT.format(number))
            return values, record
        self.starting_values.close_round({}, trained)
        return trained, record

    def _describe_waypoint(self, waypoint: Waypoint) -> CurvePoint:
        share = treated_share(self.applied.model.components, waypoint.plan)
        plan = plan_to_json(self.applied.treatments.fill_options(waypoint.plan))
        return CurvePoint(len(plan), share, waypoint.metric, waypoint.value, plan, waypoint.statistic)
