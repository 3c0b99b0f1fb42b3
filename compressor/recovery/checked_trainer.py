"""The trainer that a recovery is given: what it asks for must be what it asked for when the cost was counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from compressor.contracts import Reconstruction, Recovery, Training
from compressor.contracts.declarations import name_option
from compressor.contracts.training_requests import Asked, TrainingRequests, check_request, require_same
from compressor.errors import ModelError
from compressor.recovery.run_trainer import RunTrainer
from compressor.recovery.training_failed import TrainingFailed


@dataclass
class CheckedTrainer:
    """Passes the `requests` of a `recovery` on to the `trainer`; any other one is a PluginError."""

    recovery: Recovery
    requests: TrainingRequests
    trainer: RunTrainer
    done: int = 0

    @property
    def round(self) -> int:
        """The round after which the model is trained."""
        return self.requests.round

    def train(self, training: Training) -> None:
        with self.next_request("train", training):
            self.trainer.train(training)

    def reconstruct(self, reconstruction: Reconstruction) -> None:
        with self.next_request("reconstruct", reconstruction):
            self.trainer.reconstruct(reconstruction)

    def solve_least_squares(self, damping: float) -> None:
        with self.next_request("solve_least_squares", damping):
            self.trainer.solve_least_squares(damping)

    @contextmanager
    def next_request(self, method: str, asked: Asked) -> Iterator[None]:
        """Inside, an error that an option can mend names the option."""
        check_request(self.recovery, method, asked, self.requests.texts)
        self.compare(asked)
        self.done += 1
        try:
            yield
        except TrainingFailed as error:
            kind = type(asked).__name__ if isinstance(asked, Training | Reconstruction) else "solve_least_squares"
            key = name_option(self.recovery, error.option, kind)
            raise ModelError(f"{error}; {error.change} {key}") from None

    def finish(self) -> None:
        """Raise PluginError if the recovery asked for less than before."""
        if self.done < len(self.requests.asked):
            self.compare(None)

    def compare(self, asked: Asked | None) -> None:
        before = self.requests.asked[self.done] if self.done < len(self.requests.asked) else None
        require_same(self.recovery, f"after round {self.round}", before, asked)
