"""What a recovery takes, counted before anything starts by a trainer that does nothing."""

from dataclasses import dataclass

import torch

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

    `passes` are forward passes of a window. `memory` is in bytes beside those of the run without it. `weights` and
    `state` are the bytes of the file of a training: of its weights, which stay after the round, and of the rest.
    """

    recovery: Recovery
    model: Model
    windows: int
    round: int = 1
    passes: float = 0.0
    memory: int = 0
    weights: int = 0
    state: int = 0

    def train(self, training: Training) -> None:
        check_training(self.recovery, training, self.windows)
        network, size = self.model.network, self.model.dtype.itemsize
        weights = sum(parameter.numel() for parameter in network.parameters())
        if not training.embeddings:
            outer = {network.get_input_embeddings(), network.get_output_embeddings()} - {None}
            weights -= sum({id(p): p.numel() for module in outer for p in module.parameters()}.values())
        copy = FLOAT32 if size < FLOAT32 else 0
        base = self.model.base_parameters * size if needs_base(training) else 0
        self.memory = max(self.memory, weights * (STATE + copy) + base + self.count_batch(training.batch))
        self.add_weights(weights, weights * (STATE - FLOAT32 + copy))
        self.passes += training.steps * training.batch * (3 + training.checkpointing + needs_base(training))

    def reconstruct(self, reconstruction: Reconstruction) -> None:
        check_training(self.recovery, reconstruction, self.windows)
        layers = find_layers(self.model.network)[1]
        most = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
        base = self.model.base_parameters * self.model.dtype.itemsize
        self.memory = max(self.memory, most * STATE + base + self.count_batch(min(reconstruction.batch, self.windows)))
        self.add_weights(self.model.base_parameters)
        self.passes += 3 * reconstruction.steps * reconstruction.batch + 6 * self.windows

    def solve_least_squares(self, damping: float) -> None:
        self.add_weights(self.model.base_parameters)
        self.memory = max(self.memory, self.model.base_parameters * self.model.dtype.itemsize)

    def count_batch(self, batch: int) -> int:
        """Bytes of the tokens of a batch: its parts, and these joined."""
        texts = read_training_texts(self.recovery)
        return 2 * batch * (texts.tokens if texts else 0) * torch.int64.itemsize

    def add_weights(self, weights: int, state: int = 0) -> None:
        """So many weights are stored after the round, and before that with so many bytes of state."""
        self.weights = max(self.weights, weights * self.model.dtype.itemsize)
        self.state = max(self.state, state)

    def count_disk(self, rounds: int) -> int:
        """The most bytes of the files of all `rounds`: in the last one, a file is written beside the one before."""
        return (rounds - 1) * self.weights + 2 * (self.weights + self.state) if rounds else 0


def count_cost(recovery: Recovery, model: Model) -> TrainingCost:
    """The cost of a recovery after one round; raises PluginError for what no trainer can do."""
    texts = read_training_texts(recovery)
    cost = TrainingCost(recovery, model, texts.windows if texts else 0)
    recovery.recover(cost)
    return cost
