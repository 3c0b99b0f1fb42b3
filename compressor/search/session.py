"""A search on a model: answers a schedule's requests by measuring, and applies the plans that it keeps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts.answers import describe
from compressor.compression.apply import Treatments
from compressor.compression.calibrator import Calibrator
from compressor.contracts import (
    Best,
    BestRequest,
    CountRequest,
    Dialogue,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Oracle,
    Plan,
    Problem,
    Schedule,
    ScoreRequest,
    Scores,
    SizeRequest,
    Treatment,
    ValuesRequest,
)
from compressor.contracts.requests import compressors_of
from compressor.errors import ConfigError
from compressor.models import Model
from compressor.search.applied_plan import AppliedPlan
from compressor.search.estimating import Estimator
from compressor.search.fused_components import open_dialogue
from compressor.search.ledger import Ledger
from compressor.search.rounds import Rounds
from compressor.search.top_trials import TopTrials
from compressor.search.trial_scoring import TrialScorer


@dataclass
class Session:
    """The oracle that measures. It passes each request to the collaborator that answers it.

    `problem` is the schedule's information on the model. With `fuses`, a schedule decides for fused components.
    """

    problem: Problem
    applied: AppliedPlan
    scorer: TrialScorer
    estimator: Estimator
    top_trials: TopTrials
    rounds: Rounds
    fuses: bool = False

    @property
    def model(self) -> Model:
        return self.applied.model

    @property
    def treatments(self) -> Treatments:
        return self.applied.treatments

    @property
    def calibrator(self) -> Calibrator:
        return self.applied.calibrator

    @property
    def ledger(self) -> Ledger:
        return self.scorer.ledger

    def begin(self, schedule: Schedule) -> tuple[Dialogue, Oracle]:
        """A dialogue with a schedule, which checks its options at once, and the oracle that answers it."""
        self.treatments.find_needs(self.treatments.configured)
        if any(compressor.transforms_inputs is True for compressor in self.treatments.configured.values()):
            self.model.check_transformable(self.model.weight_views)
        return open_dialogue(schedule, self.problem, self, self.fuses)

    def run(self, dialogue: Dialogue, oracle: Oracle) -> None:
        """Answer the schedule until it is done; raises ConfigError if it keeps no plan."""
        self.ledger.began = time.monotonic()
        for _ in dialogue.converse(oracle):
            self.scorer.answers.pause()
        if not self.rounds.records:
            raise ConfigError(f"{dialogue.owner} kept no plan; check its options")

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        self._calibrate(*request.trials)
        return self.scorer.score(request)

    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        self._calibrate(*request.trials)
        return self.scorer.values(request)

    def best(self, request: BestRequest) -> Best:
        self._calibrate(*request.trials)
        return self.top_trials.find(request)

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        self._calibrate(request.at, request.options)
        return self.estimator.estimate(request)

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        self._calibrate(request.options)
        answers = self.scorer.answers
        options = [[name, *map(describe, chosen)] for name, chosen in request.options.items()]
        key = answers.make_key("sizes", request.on_disk, options)
        if (stored := answers.find(key)) is not None:
            return {name: stored.arrays[str(index)].tolist() for index, name in enumerate(request.options)}
        sizes = self.applied.count_sizes(request)
        answers.add(key, {str(index): np.array(bits, dtype=np.int64) for index, bits in enumerate(sizes.values())})
        return sizes

    def counts(self, request: CountRequest) -> dict[str, list[int]]:
        self._calibrate()
        return self.treatments.count(self.model, request.compressor, request.thresholds)

    def keep(self, request: KeepRequest) -> dict[str, float]:
        return self.rounds.keep(request)

    def _calibrate(self, *treatments: Plan | Mapping[str, Sequence[Treatment | None]]) -> None:
        """Gather the calibration data that the configured compressors and those in these plans or options need."""
        self.calibrator.prepare(set(self.treatments.configured).union(*map(compressors_of, treatments)))
