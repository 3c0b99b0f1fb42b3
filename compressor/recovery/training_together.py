"""What the other processes of a run do: they train with the first one whenever it trains."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.contracts import QuantizedMatrix, Training
from compressor.models import Model, load_model
from compressor.recovery.fine_tuning import FineTuning, needs_base
from compressor.recovery.processes import Processes
from compressor.recovery.trained_weights import TrainedWeights, make_scales
from compressor.recovery.training_log import TrainingLog
from compressor.settings import ComponentSettings, ModelSettings


@dataclass(frozen=True)
class SharedTraining:
    """All that another process needs to train with the first one, from the step `first` on.

    `scales` are quantized components with the logarithms of `TrainedScales`. `weights` are those of all parameters of
    the compressed model, `state` that of the optimizer.
    """

    model: ModelSettings
    components: ComponentSettings
    training: Training
    pruned: frozenset[str]
    frozen: frozenset[str]
    scales: dict[str, tuple[QuantizedMatrix, Tensor]]
    windows: Tensor
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    seed: int
    first: int


def serve(processes: Processes) -> None:
    """Train with the first process until that is done with its run."""
    models: dict[str, Model] = {}
    while isinstance(work := processes.tell(None), SharedTraining):
        train_with(work, processes, models)


def train_with(work: SharedTraining, processes: Processes, models: dict[str, Model]) -> None:
    """Take all steps of a training. `models` keeps the compressed model and the base for further trainings."""
    for name in ("compressed", "base") if needs_base(work.training) else ("compressed",):
        if name not in models:
            models[name] = load_model(work.model, work.components)
    model = models["compressed"]
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            parameter.copy_(work.weights[name])
    scales = make_scales(model, {name: matrix for name, (matrix, _) in work.scales.items()})
    for name, (_, logarithms) in work.scales.items():
        scales[name].logarithms.copy_(logarithms)
    trained = TrainedWeights(model, work.pruned, work.frozen, scales)
    optimizer = trained.make_optimizer(model.network, work.training, work.training.embeddings)
    optimizer.restore(work.state)
    base = models["base"] if needs_base(work.training) else None
    tuning = FineTuning(model, base, work.windows, work.training, optimizer, work.seed, processes)
    for _ in tuning.take_steps(
        work.first, TrainingLog("training", work.training.steps, work.training.learning_rate, ignore)
    ):
        pass


def ignore(point: Any) -> None:  # noqa: ANN401 - the first process reports
    """Points are reported by the first process."""
