"""What a recovery takes, counted before anything starts by a trainer that does nothing."""

from dataclasses import dataclass, field

from compressor.contracts import Reconstruction, Recovery, Training
from compressor.models import Model
from compressor.models.components import find_layers
from compressor.recovery.fine_tuning import needs_base

FLOAT32 = 4
STATE = 3 * FLOAT32
"""Bytes of the gradient and of two moments of a weight."""


@dataclass
class TrainingCost:
    """A trainer that only counts. `passes` are forward passes of a window; `memory` is in bytes, besides the model."""

    model: Model
    windows: int
    round: int = 1
    passes: float = 0.0
    memory: int = 0
    stages: list[Training | Reconstruction | float] = field(default_factory=list)

    def train(self, training: Training) -> None:
        self.stages.append(training)
        network, size = self.model.network, self.model.dtype.itemsize
        weights = sum(parameter.numel() for parameter in network.parameters())
        if not training.embeddings:
            outer = {network.get_input_embeddings(), network.get_output_embeddings()} - {None}
            weights -= sum({id(p): p.numel() for module in outer for p in module.parameters()}.values())
        copy = FLOAT32 if size < FLOAT32 else 0
        base = self.model.base_parameters * size if needs_base(training) else 0
        self.memory = max(self.memory, weights * (STATE + copy) + base)
        self.passes += training.steps * training.batch * (3 + training.checkpointing + needs_base(training))

    def reconstruct(self, reconstruction: Reconstruction) -> None:
        self.stages.append(reconstruction)
        layers = find_layers(self.model.network)[1]
        most = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
        self.memory = max(self.memory, most * STATE + self.model.base_parameters * self.model.dtype.itemsize)
        self.passes += 3 * reconstruction.steps * reconstruction.batch + 6 * self.windows

    def solve_least_squares(self, damping: float) -> None:
        self.stages.append(damping)
        self.memory = max(self.memory, self.model.base_parameters * self.model.dtype.itemsize)


def count_cost(recovery: Recovery, model: Model) -> TrainingCost:
    """The cost of a recovery after one round."""
    texts = recovery.texts()
    cost = TrainingCost(model, texts.windows if texts else 0)
    recovery.recover(cost)
    return cost
