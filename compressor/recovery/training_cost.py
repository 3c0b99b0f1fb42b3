"""What a recovery takes, counted before anything starts by a trainer that does nothing."""

from dataclasses import dataclass

from compressor.contracts import Reconstruction, Recovery, Training
from compressor.contracts.declarations import check_training, read_training_texts
from compressor.models import Model
from compressor.models.components import find_layers
from compressor.recovery.fine_tuning import needs_base

FLOAT32 = 4
STATE = 3 * FLOAT32
"""Bytes of the gradient and of two moments of a weight."""


@dataclass
class TrainingCost:
    """A trainer that only counts what a `recovery` of `model` with so many `windows` takes after one round.

    `passes` are forward passes of a window. `memory` and `disk` are bytes beside those of the run without it.
    """

    recovery: Recovery
    model: Model
    windows: int
    round: int = 1
    passes: float = 0.0
    memory: int = 0
    disk: int = 0

    def train(self, training: Training) -> None:
        check_training(self.recovery, training, self.windows)
        network, size = self.model.network, self.model.dtype.itemsize
        weights = sum(parameter.numel() for parameter in network.parameters())
        if not training.embeddings:
            outer = {network.get_input_embeddings(), network.get_output_embeddings()} - {None}
            weights -= sum({id(p): p.numel() for module in outer for p in module.parameters()}.values())
        copy = FLOAT32 if size < FLOAT32 else 0
        base = self.model.base_parameters * size if needs_base(training) else 0
        self.memory = max(self.memory, weights * (STATE + copy) + base)
        self.add_weights(weights, weights * (STATE - FLOAT32 + copy))
        self.passes += training.steps * training.batch * (3 + training.checkpointing + needs_base(training))

    def reconstruct(self, reconstruction: Reconstruction) -> None:
        check_training(self.recovery, reconstruction, self.windows)
        layers = find_layers(self.model.network)[1]
        most = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
        self.memory = max(self.memory, most * STATE + self.model.base_parameters * self.model.dtype.itemsize)
        self.add_weights(self.model.base_parameters)
        self.passes += 3 * reconstruction.steps * reconstruction.batch + 6 * self.windows

    def solve_least_squares(self, damping: float) -> None:
        self.add_weights(self.model.base_parameters)
        self.memory = max(self.memory, self.model.base_parameters * self.model.dtype.itemsize)

    def add_weights(self, weights: int, state: int = 0) -> None:
        """So many weights are stored after the round, and before that with so many bytes of state."""
        self.disk = max(self.disk, weights * self.model.dtype.itemsize + state)


def count_cost(recovery: Recovery, model: Model) -> TrainingCost:
    """The cost of a recovery after one round; raises PluginError for what no trainer can do."""
    texts = read_training_texts(recovery)
    cost = TrainingCost(recovery, model, texts.windows if texts else 0)
    recovery.recover(cost)
    return cost
