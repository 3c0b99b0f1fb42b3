"""Training of one block after the other: each gives again what the same block of the base gives.

The blocks of a decoder layer are its modules that hold components, such as the attention and the MLP. The hidden states
of the base and of the compressed model are carried from layer to layer, so each layer runs a few times, whatever the
depth of the model, and gradients exist for one block at a time.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.contracts.recovery import Reconstruction
from compressor.evaluation.layer_replay import LayerInputs, LayerReplay
from compressor.recovery.optimizer import Optimizer, compute_rate
from compressor.recovery.training_log import TrainingLog

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Stream:
    """The hidden states of one model for batches of windows, at the input of the layer that comes next."""

    replay: LayerReplay
    inputs: list[LayerInputs]
    hidden: list[Tensor]

    @staticmethod
    def enter(replay: LayerReplay, batches: Sequence[Tensor]) -> "Stream":
        """At the first layer, for batches `[window, position]`."""
        inputs = [replay.enter(batch) for batch in batches]
        return Stream(replay, inputs, [each.hidden for each in inputs])

    def run(self, layer: int) -> list[Tensor]:
        """What the layer gives for each batch."""
        batches = zip(self.inputs, self.hidden, strict=True)
        return [self.replay.run(layer, inputs, hidden) for inputs, hidden in batches]

    def find_calls(self, layer: int, blocks: Sequence[str]) -> dict[str, "Calls"]:
        """Run a layer, and collect the calls of its blocks."""
        module = self.replay.layers[layer]
        with ExitStack() as stack:
            calls = {name: stack.enter_context(recorded(module.get_submodule(name))) for name in blocks}
            self.run(layer)
        return calls

    def advance(self, layer: int) -> None:
        """Go on to the next layer."""
        self.hidden = self.run(layer)


@dataclass
class Calls:
    """The arguments and the first output of each call of a module."""

    arguments: list[Call] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded(module: nn.Module) -> Iterator[Calls]:
    """Inside, the calls of the module are collected."""
    calls = Calls()

    def record(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        calls.arguments.append((arguments, named))
        calls.outputs.append(first_of(output))

    handle = module.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def first_of(output: Any) -> Tensor:  # noqa: ANN401 - whatever a module gives
    """The first tensor that a module gives."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def find_blocks(layer: nn.Module, owners: Collection[nn.Module]) -> list[str]:
    """The names of the layer's own modules that hold one of `owners`, in the order of the layer."""
    wanted = set(owners)
    return [name for name, block in layer.named_children() if not wanted.isdisjoint(block.modules())]


def compute_error(block: nn.Module, call: Call, goal: Tensor) -> Tensor:
    """‖f′(x′) − f(x)‖² / ‖f(x)‖² of a batch; f(x) is the `goal`."""
    arguments, named = call
    wanted = goal.float()
    error = (first_of(block(*arguments, **named)).float() - wanted).square().sum()
    return error / wanted.square().sum().clamp(min=torch.finfo(torch.float32).tiny)


def take_steps(
    block: nn.Module, calls: Sequence[Call], goals: Sequence[Tensor], options: Reconstruction, optimizer: Optimizer,
    log: TrainingLog, seed: int,
) -> Iterator[bool]:  # fmt: skip
    """Train a block; yields after each step whether all losses so far are known to be finite."""
    with optimizer.training():
        for step in range(options.steps):
            epoch, place = divmod(step, len(calls))
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            number = int(torch.randperm(len(calls), generator=generator)[place])
            with torch.enable_grad():
                loss = compute_error(block, calls[number], goals[number])
                loss.backward()
            rate = compute_rate(step, options.steps, options.warmup)
            optimizer.update(rate, holds_masks=True)
            yield log.add(step, loss, goals[number].shape[:-1].numel(), rate * options.learning_rate)
