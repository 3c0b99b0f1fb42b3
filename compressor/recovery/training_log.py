"""What training reports: losses, and how fast it is; shown as progress and sent to a tracker."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.artifacts.run_record import TrainingPoint
from compressor.recovery.training_failed import TrainingFailed

EVERY = 10
"""Steps between two points. Their mean loss is one number, so that the device is waited for only then."""


@dataclass
class TrainingLog:
    """The `points` of one training. `on_point` is called with each of them; `stage` names what is trained in
    `steps`, with a `learning_rate` that is at most this.

    `losses` are those since the last point. If a run `is_stopping`, they are looked at after the next step, too, which
    makes no point: a run that goes on has the same points as one that was never stopped.
    """

    stage: str
    steps: int
    learning_rate: float
    on_point: Callable[[TrainingPoint], None]
    is_stopping: Callable[[], bool] = lambda: False
    points: list[TrainingPoint] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    losses: list[Tensor] = field(default_factory=list)
    tokens: int = 0

    def add(self, step: int, loss: Tensor, tokens: int, learning_rate: float) -> bool:
        """Note the loss of a step; true if the losses were looked at, so that all so far are known to be finite.

        Raises TrainingFailed for a loss that is not finite.
        """
        self.losses.append(loss.detach())
        self.tokens += tokens
        is_point = (step + 1) % EVERY == 0 or step + 1 == self.steps
        if not is_point and not self.is_stopping():
            return False
        mean, now = float(torch.stack(self.losses).mean()), time.monotonic()
        if not math.isfinite(mean):
            raise TrainingFailed(
                f"the loss of {self.stage} is not finite in the steps up to {step + 1} of {self.steps}, with the "
                f"learning rate {self.learning_rate:g}",
                "lower",
                "learning_rate",
            )
        if not is_point:
            return True
        point = TrainingPoint(self.stage, step + 1, mean, learning_rate, self.tokens / max(now - self.began, 1e-9))
        self.points.append(point)
        self.on_point(point)
        self.losses.clear()
        self.tokens, self.began = 0, now
        return True

    def list_losses(self) -> list[float]:
        """The losses since the last point, for `restore`."""
        return [float(loss) for loss in self.losses]

    def restore(self, losses: list[float]) -> None:
        """Go on with the losses since the last point that an interrupted run had."""
        self.losses = [torch.tensor(loss) for loss in losses]
