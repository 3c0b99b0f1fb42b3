"""What a recovery takes, counted before anything starts from what it asks the trainer for."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from compressor.contracts import Reconstruction, Recovery, Training, TrainingTexts
from compressor.contracts.training_requests import Asked, list_requests
from compressor.models import Model
from compressor.models.components import find_layers
from compressor.recovery.fine_tuning import needs_base

FLOAT32 = 4
MOMENTS = 2 * FLOAT32
"""Bytes of the two moments of a weight."""


@dataclass
class TrainingCost:
    """What trainings of `model` on `texts` take.

    `passes` are forward passes of a window. `memory` is in bytes beside those of the run without them, in each of the
    `processes` that train together. `weights` and `state` are the bytes of the file of a training: of its weights,
    which stay after the round, and of the rest.
    """

    model: Model
    texts: TrainingTexts | None
    processes: int = 1
    passes: float = 0.0
    memory: int = 0
    weights: int = 0
    state: int = 0

    def add(self, asked: Asked) -> None:
        """Add one request to the trainer."""
        match asked:
            case Training():
                self.add_training(asked)
            case Reconstruction():
                self.add_reconstruction(asked)
            case _:
                self.add_weights(self.model.base_parameters)
                self.memory = max(self.memory, self.model.base_parameters * self.model.dtype.itemsize)

    def add_training(self, training: Training) -> None:
        network, size = self.model.network, self.model.dtype.itemsize
        weights = sum(parameter.numel() for parameter in network.parameters())
        if not training.embeddings:
            outer = {network.get_input_embeddings(), network.get_output_embeddings()} - {None}
            weights -= sum({id(p): p.numel() for module in outer for p in module.parameters()}.values())
        copy = FLOAT32 if size < FLOAT32 else 0
        base = self.model.base_parameters * size if needs_base(training) else 0
        kept = (MOMENTS + copy) / self.processes
        most = max(size + kept, FLOAT32 / self.processes + kept)  # before an update, and in it
        self.memory = max(self.memory, math.ceil(weights * most) + base + self.count_batch(training.batch))
        self.add_weights(weights, weights * (MOMENTS + copy))
        passes = training.steps * training.batch * (3 + training.checkpointing + needs_base(training))
        self.passes += passes / self.processes

    def add_reconstruction(self, reconstruction: Reconstruction) -> None:
        assert self.texts is not None, "checked before"
        layers, windows = find_layers(self.model.network)[1], self.texts.windows
        most = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
        base = self.model.base_parameters * self.model.dtype.itemsize
        memory = most * (FLOAT32 + MOMENTS) + base + self.count_batch(min(reconstruction.batch, windows))
        self.memory = max(self.memory, memory)
        self.add_weights(self.model.base_parameters)
        self.passes += 3 * reconstruction.steps * reconstruction.batch + 6 * windows

    def count_batch(self, batch: int) -> int:
        """Bytes of the tokens of a batch: its parts, and these joined."""
        return 2 * batch * (self.texts.tokens if self.texts else 0) * torch.int64.itemsize

    def add_weights(self, weights: int, state: int = 0) -> None:
        """So many weights are stored after the round, and before that with so many bytes of state."""
        self.weights = max(self.weights, weights * self.model.dtype.itemsize)
        self.state = max(self.state, state)

    def count_disk(self, rounds: int) -> int:
        """The most bytes of the files of all `rounds`: in the last one, a file is written beside the one before."""
        return (rounds - 1) * self.weights + 2 * (self.weights + self.state) if rounds else 0


def count_cost(recovery: Recovery, model: Model, rounds: Iterable[int] = (1,), processes: int = 1) -> TrainingCost:
    """The cost of a recovery after these rounds; raises PluginError for what no trainer can do."""
    cost = TrainingCost(model, None, processes)
    for number in rounds:
        requests = list_requests(recovery, number)
        cost.texts = requests.texts
        for asked in requests.asked:
            cost.add(asked)
    return cost
