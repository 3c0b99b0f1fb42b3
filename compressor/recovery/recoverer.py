"""Lets the recovery of a run train the model after a round, once."""

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from compressor.artifacts.answers import Answers, hash_facts
from compressor.artifacts.run_record import RecoveryRecord
from compressor.contracts import QuantizedMatrix, Recovery, Score
from compressor.contracts.training_requests import TrainingRequests, list_requests, require_same
from compressor.data.reference import Reference
from compressor.recovery.checked_trainer import CheckedTrainer
from compressor.recovery.run_trainer import RunTrainer
from compressor.recovery.trained_weights import TrainedWeights
from compressor.recovery.training_means import TrainingMeans


@dataclass
class Recoverer:
    """Trains the model by a `recovery`.

    `first` is what the recovery asked for before the search. `find_trained` gives the weights that may be trained now.
    `references` are all those of the run. Weights and the state of a training are stored in `folder`, one file for
    each round.
    """

    recovery: Recovery
    first: TrainingRequests
    means: TrainingMeans
    find_trained: Callable[[], TrainedWeights]
    references: list[Reference]
    answers: Answers
    folder: Path
    trainer: RunTrainer | None = field(default=None, init=False)

    def train(self, number: int, before: dict[str, Score]) -> RecoveryRecord:
        """Train after the round `number`, whose plan had the scores `before`; returns what was done."""
        began = time.monotonic()
        for reference in self.references:
            if reference.head is not None:
                reference.head.own()  # training may change the head of the model, and must not change that of the base
        requests = list_requests(self.recovery, number)
        require_same(self.recovery, "as its texts", self.first.texts, requests.texts)
        if number == self.first.round:
            for earlier, now in zip_longest(self.first.asked, requests.asked):
                require_same(self.recovery, f"after round {number}", earlier, now)
        facts = self.list_facts(requests)
        key = self.answers.make_key("recovery", number, *facts)
        path = self.folder / f"round-{number}.safetensors"
        self.trainer = trainer = RunTrainer(self.means, self.find_trained(), path, key, number)
        if not trainer.is_done:
            checked = CheckedTrainer(self.recovery, requests, trainer)
            self.recovery.recover(checked)
            checked.finish()
            trainer.finish(self.means.model.stored_dtype)
        self.answers.enter("recovery", hash_facts(*facts))
        return RecoveryRecord(self.recovery.name, time.monotonic() - began, before, trainer.points)

    def list_facts(self, requests: TrainingRequests) -> list[object]:
        """On what a training depends besides the model: the recovery, its options and requests, and its texts."""
        options = {each.name: str(getattr(self.recovery, each.name)) for each in dataclasses.fields(self.recovery)}  # type: ignore[arg-type]
        texts = None if self.means.windows is None else hashlib.sha256(self.means.windows.numpy().tobytes()).hexdigest()
        return [self.recovery.name, options, [str(each) for each in requests.asked], texts]

    def end(self, is_kept: bool) -> dict[str, QuantizedMatrix]:
        """Keep what was trained, or go back to the weights before it; returns quantized components with new scales.

        Later rounds start from what was trained, and from the base's weights where a component was quantized.
        """
        assert self.trainer is not None, "a round was trained"
        trainer, self.trainer = self.trainer, None
        if not is_kept:
            trainer.undo()
            self.answers.enter("undone")
            return {}
        for name in trainer.trained.pruned & self.means.model.held.keys():
            self.means.model.held[name] = self.means.model.read(name).cpu()
        return {name: scales.find_matrix().to("cpu") for name, scales in trainer.trained.scales.items()}
