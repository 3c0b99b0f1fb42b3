"""What the other processes of a run do: they train with the first one whenever it trains."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.contracts import QuantizedMatrix, Training
from compressor.models import Model, load_model
from compressor.recovery.fine_tuning import FineTuning, needs_base
from compressor.recovery.processes import Processes
from compressor.recovery.trained_weights import TrainedWeights, make_scales
from compressor.settings import ComponentSettings, ModelSettings


@dataclass(frozen=True)
class SharedTraining:
    """All that another process needs to train with the first one, from the step `first` on.

    `scales` are quantized components with the logarithms of `TrainedScales`. The weights of the compressed model and
    the state of the optimizer follow, one tensor after the other.
    """

    model: ModelSettings
    components: ComponentSettings
    training: Training
    pruned: frozenset[str]
    frozen: frozenset[str]
    scales: dict[str, tuple[QuantizedMatrix, Tensor]]
    windows: Tensor
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
    parameters = dict(model.network.named_parameters())
    with torch.no_grad():
        for name, weight in processes.spread(()):
            parameters[name].copy_(weight)
    scales = make_scales(model, {name: matrix for name, (matrix, _) in work.scales.items()})
    for name, (_, logarithms) in work.scales.items():
        scales[name].logarithms.copy_(logarithms)
    trained = TrainedWeights(model, work.pruned, work.frozen, scales)
    optimizer = trained.make_optimizer(model.network, work.training, work.training.embeddings, processes)
    optimizer.restore({})
    base = models["base"] if needs_base(work.training) else None
    FineTuning(model, base, work.windows, work.training, optimizer, work.seed, processes).follow(work.first)
