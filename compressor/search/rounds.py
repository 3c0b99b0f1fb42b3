"""Ends a round: applies the plan to the model, scores it on the search prefixes, and records the round."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from compressor.artifacts.answers import list_facts
from compressor.artifacts.plan_file import plan_to_json
from compressor.artifacts.run_record import CurvePoint, RecoveryRecord, RoundRecord
from compressor.compression.amounts import amount_of, mean_amount, treated_share
from compressor.contracts import KeepRequest, Prefixes, Score, Waypoint
from compressor.progress import Progress
from compressor.search.additivity import StartingValues
from compressor.search.applied_plan import AppliedPlan
from compressor.search.trial_scoring import TrialScorer

Recover = Callable[[int, dict[str, Score]], RecoveryRecord]


@dataclass
class Rounds:
    """`records` has a record of each round that ended; amounts are cumulative. `notes` are sentences for the user.

    `recover` trains the model after a round; it is given the number of the round and the scores of the plan. `on_round`
    is called with the number and the record of each round. `most_bytes` is the schedule's limit of the exported weight
    files, or None.
    """

    applied: AppliedPlan
    scorer: TrialScorer
    starting_values: StartingValues
    on_round: Callable[[int, RoundRecord], None]
    records: list[RoundRecord]
    notes: list[str]
    progress: Progress
    recover: Recover | None = None
    most_bytes: int | None = field(default=None, init=False)

    def keep(self, request: KeepRequest) -> dict[str, float]:
        """Apply a plan to the model, score it and record the round; returns the amount of every component."""
        applied, ledger = self.applied, self.scorer.ledger
        components = applied.model.components
        plan = applied.treatments.fill_options(request.plan)
        applied.apply(plan, request.last and self.recover is None)
        self.scorer.answers.enter("keep", list_facts(plan))
        self.most_bytes = request.most_bytes
        values = self.scorer.score_kept(Prefixes.SEARCH)
        additivity, recovery = self.starting_values.close_round(request.singles, values), None
        if self.recover is not None:
            recovery = self.recover(len(self.records) + 1, self.scorer.summarize(values))
            applied.end_training(request.last)
            values = self.scorer.score_kept(Prefixes.SEARCH)
            self.starting_values.close_round({}, values)
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

    def _describe_waypoint(self, waypoint: Waypoint) -> CurvePoint:
        share = treated_share(self.applied.model.components, waypoint.plan)
        plan = plan_to_json(self.applied.treatments.fill_options(waypoint.plan))
        return CurvePoint(len(plan), share, waypoint.metric, waypoint.value, plan, waypoint.statistic)
