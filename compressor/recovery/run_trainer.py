"""The trainer that a run gives to a recovery: trains the model, and goes on where an interrupted run was."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from compressor.artifacts.folder_lock import require_held
from compressor.artifacts.run_record import TrainingPoint
from compressor.compression.calibration import gather
from compressor.contracts import Reconstruction, Training
from compressor.errors import ConfigError
from compressor.evaluation.layer_replay import CannotReplay, LayerReplay
from compressor.models import Model
from compressor.models.components import find_layers
from compressor.recovery.fine_tuning import FineTuning, needs_base
from compressor.recovery.least_squares import solve_rows
from compressor.recovery.optimizer import Optimizer
from compressor.recovery.reconstruction import Stream, find_blocks, take_steps
from compressor.recovery.trained_weights import TrainedWeights
from compressor.recovery.training_log import TrainingLog
from compressor.recovery.training_means import TrainingMeans
from compressor.recovery.training_state import TrainingState, read_state, write_state
from compressor.recovery.training_together import SharedTraining

SAVED_EVERY = 60.0
"""Seconds between two states of a training on disk."""
OPTIMIZER, SCALES = "optimizer.", "scales."


@dataclass
class RunTrainer:
    """Trains the model by the methods of `compressor.contracts.Trainer`, after the round `round`.

    `trained` are the weights that may be trained. The state of the training is in the file `path` under a `key`.
    `stage` counts the calls of the recovery; an interrupted run has done some of them, and its state is `earlier`.
    `before` has the weights on the host that were there before the training, by the names of all parameters that are
    trained.
    """

    means: TrainingMeans
    trained: TrainedWeights
    path: Path
    key: str
    round: int = 1
    points: list[TrainingPoint] = field(default_factory=list, init=False)
    before: dict[str, Tensor] = field(default_factory=dict, init=False)
    stage: int = field(default=0, init=False)
    earlier: TrainingState | None = field(default=None, init=False)
    saved_at: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.earlier = read_state(self.path, self.key)
        if self.earlier is None:
            return
        self.points += [TrainingPoint(**point) for point in self.earlier.facts["points"]]
        self.remember(self.earlier.tensors.keys() & self.parameters.keys())
        with torch.no_grad():
            for name in self.before:
                self.parameters[name].copy_(self.earlier.tensors[name])
            for name, scales in self.trained.scales.items():
                if (trained := self.earlier.tensors.get(f"{SCALES}{name}")) is not None:  # else they were kept
                    scales.logarithms.copy_(trained)

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has finished this training."""
        return self.earlier is not None and self.earlier.facts["stage"] is None

    @cached_property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.model.network.named_parameters())

    @property
    def model(self) -> Model:
        return self.means.model

    def train(self, training: Training) -> None:
        done = self.begin_stage()
        if done is None:
            return
        processes = self.means.processes
        optimizer = self.trained.make_optimizer(self.model.network, training, training.embeddings, processes)
        self.touch(optimizer.changed)
        log = self.open_log("training", training)
        self.share(training, done)
        self.restore(optimizer, log)
        base = self.means.base if needs_base(training) else None
        seed = self.means.seed + self.stage
        work = FineTuning(self.model, base, self.means.texts, training, optimizer, seed, processes)
        with closing(work.take_steps(done, log)) as steps:
            shown = self.means.progress.track(steps, f"round {self.round}: training", training.steps - done)
            for number, is_good in enumerate(shown, done + 1):
                self.pause(is_good, number, work, log)

    def share(self, training: Training, done: int) -> None:
        """Let the other processes train too, from the step `done` on."""
        means, trained = self.means, self.trained
        if means.processes.count == 1:
            return
        scales = {name: (each.matrix.to("cpu"), each.logarithms.cpu()) for name, each in trained.scales.items()}
        pruned, frozen, seed = trained.pruned, trained.frozen, means.seed + self.stage
        means.processes.tell(SharedTraining(*means.settings, training, pruned, frozen, scales, means.texts, seed, done))
        for _ in means.processes.spread((name, each.detach()) for name, each in self.parameters.items()):
            pass

    def reconstruct(self, reconstruction: Reconstruction) -> None:
        done = self.begin_stage()
        if done is None:
            return
        try:
            replays = LayerReplay(self.means.base), LayerReplay(self.model)
        except CannotReplay as error:
            raise ConfigError(
                f"recovery by blocks needs layers that can run one at a time, and {error}; choose recovery=finetune"
            ) from None
        batches = self.means.texts.split(reconstruction.batch)
        base, ours = (Stream.enter(replay, batches) for replay in replays)
        layers, description = range(len(replays[0].layers)), f"round {self.round}: reconstructing layers"
        for number in self.means.progress.track(iter(layers), description, len(layers)):
            if number >= done:
                self.reconstruct_layer(number, base, ours, reconstruction)
                self.pause(True, number + 1)
            base.advance(number)
            ours.advance(number)

    def reconstruct_layer(self, number: int, base: Stream, ours: Stream, options: Reconstruction) -> None:
        """Train the blocks of one layer, in the order of the layer."""
        layer = ours.replay.layers[number]
        owners = [self.model.weight_views[name].owner for name in self.trained.pruned | self.trained.frozen]
        blocks = find_blocks(layer, owners)
        goals = base.find_calls(number, blocks)
        for name in blocks:
            block = layer.get_submodule(name)
            if not self.trained.list_parameters(block) and not self.trained.list_scales(block):
                continue
            calls = ours.find_calls(number, [name])[name]
            optimizer = self.trained.make_optimizer(block, options)
            self.touch(optimizer.changed)
            log = self.open_log(f"layer {number}, {name}", options)
            seed = self.means.seed + self.stage + 1000 * number
            for _ in take_steps(block, calls.arguments, goals[name].outputs, options, optimizer, log, seed):
                pass

    def solve_least_squares(self, damping: float) -> None:
        if self.begin_stage() is None:
            return
        layers = range(len(find_layers(self.model.network)[1]))
        for number in self.means.progress.track(iter(layers), f"round {self.round}: solving layers", len(layers)):
            names = [name for name in sorted(self.trained.pruned) if self.model.components[name].layer == number]
            if names:
                self.solve_layer(names, number, damping)

    def solve_layer(self, names: list[str], number: int, damping: float) -> None:
        """Solve for the pruned components of a layer, with their inputs in the model with solved earlier layers."""
        found = gather(self.model, self.means.reference, names, {"hessian"}, number, self.means.memory)
        for name in names:
            data = found.read(name, ["hessian"])
            assert data is not None, "they were gathered just now"
            weight = self.model.read(name)
            hessian = data["hessian"].to(weight.device)
            self.model.write(name, solve_rows(self.means.base.read(name), weight != 0, hessian, damping))
            self.touch([self.model.weight_views[name].parameter])

    def begin_stage(self) -> int | None:
        """Count a call of the recovery; returns how much of it an interrupted run has done, None if all."""
        self.stage += 1
        if self.earlier is None:
            return 0
        stage = self.earlier.facts["stage"]
        if stage is None or self.stage < stage:
            return None
        return int(self.earlier.facts["done"]) if self.stage == stage else 0

    def touch(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """These parameters are trained, so they are part of the state."""
        chosen = {id(parameter) for parameter in parameters}
        self.remember(name for name, parameter in self.parameters.items() if id(parameter) in chosen)

    def remember(self, names: Iterable[str]) -> None:
        """Copy parameters that are going to be trained, unless they are copied already."""
        self.before |= {
            name: self.parameters[name].detach().to("cpu", copy=True) for name in names if name not in self.before
        }

    @torch.no_grad()
    def undo(self) -> None:
        """Go back to the weights before the training."""
        for name, weight in self.before.items():
            self.parameters[name].copy_(weight)

    def open_log(self, stage: str, options: Training | Reconstruction) -> TrainingLog:
        def note(point: TrainingPoint) -> None:
            self.points.append(point)
            self.means.on_point(point)

        return TrainingLog(stage, options.steps, options.learning_rate, note, self.means.stopping.is_stopping)

    def restore(self, optimizer: Optimizer, log: TrainingLog) -> None:
        """Give the optimizer and the log their state, if an interrupted run was in this stage."""
        state = {}
        if self.earlier is not None and self.earlier.facts["stage"] == self.stage:
            state = {
                name.removeprefix(OPTIMIZER): tensor
                for name, tensor in self.earlier.tensors.items()
                if name.startswith(OPTIMIZER)
            }
            log.restore(self.earlier.facts["losses"])
        optimizer.restore(state)

    def pause(self, is_good: bool, done: int, work: FineTuning | None = None, log: TrainingLog | None = None) -> None:
        """Save the state if that is due, where the weights are known to be good; here a run may stop."""
        if not is_good or not (self.means.stopping.is_stopping() or time.monotonic() - self.saved_at >= SAVED_EVERY):
            return
        moments = {} if work is None else work.list_state()
        losses = [] if log is None else log.list_losses()
        self.save(self.stage, done, {f"{OPTIMIZER}{name}": tensor for name, tensor in moments.items()}, losses)
        self.saved_at = time.monotonic()
        self.means.stopping.after_block()

    def finish(self, dtype: torch.dtype) -> None:
        """Round the trained weights to the `dtype` of the checkpoint, and save them for a run that is resumed.

        Quantized weights have their own form.
        """
        rounded = {id(parameter) for parameter in self.trained.list_parameters(self.model.network)}
        with torch.no_grad():
            for name in self.before:
                parameter = self.parameters[name]
                if id(parameter) in rounded:
                    parameter.copy_(parameter.to(dtype))
        self.save(None, 0, {})

    def save(self, stage: int | None, done: int, further: Mapping[str, Tensor], losses: Sequence[float] = ()) -> None:
        tensors = {name: self.parameters[name].detach() for name in sorted(self.before)}
        tensors |= {f"{SCALES}{name}": scales.logarithms for name, scales in self.trained.scales.items()}
        facts = {"stage": stage, "done": done, "points": [asdict(point) for point in self.points], "losses": [*losses]}
        require_held(self.path.parent.parent)
        write_state(self.path, self.key, TrainingState({**tensors, **further}, facts))
