"""Runs batches through the layers of a model: into the first, on through the others, and out as logits.

A branch is one trial, or several equal ones, on its way through the layers. Branches of one batch can be run as one
larger batch through the layers that none of them changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from compressor.contracts import Readout
from compressor.errors import PluginError
from compressor.evaluation.batches import Batch, BatchValues, Reader
from compressor.evaluation.layer_replay import LayerInputs, LayerReplay
from compressor.evaluation.weight_source import Weights

Branch = tuple[int, Tensor]
"""A branch's key, and its hidden states `[sequence, length, width]`."""

AT_ONCE = 64
"""Branches that a GPU runs as one batch, as long as its memory holds them."""

Result = TypeVar("Result")


@dataclass
class BatchState:
    """A batch on its way through the layers of the current model.

    `hidden` `[sequence, length, width]` enters the next layer. `next_hidden` is the output of that layer where it is
    known already. `inputs` are the layers' arguments, by the number of branches that are run as one batch.
    """

    batch: Batch
    hidden: Tensor
    inputs: dict[int, LayerInputs] = field(default_factory=dict)
    next_hidden: Tensor | None = None

    @property
    def own_inputs(self) -> LayerInputs:
        """The layers' arguments for the batch alone."""
        return self.inputs[1]


class LayerRunner:
    """Runs batches and their branches through the layers of `replay.model`, `at_once` branches as one batch.

    On a CPU the default is one branch at a time: equal shapes use equal kernels, so that the logits have the same bits
    as those of the model's own forward pass. `at_once` falls when memory runs out.
    """

    def __init__(self, replay: LayerReplay, at_once: int | None = None) -> None:
        self.replay, self.model = replay, replay.model
        self.at_once = at_once or (1 if self.model.device.type == "cpu" else AT_ONCE)

    def enter(self, batch: Batch) -> BatchState:
        """The batch before the first layer."""
        inputs = self.replay.enter(batch.tokens)
        return BatchState(batch, inputs.hidden, {1: inputs})

    def advance(self, index: int, state: BatchState) -> None:
        """Run the layer `index` of the current model."""
        if state.next_hidden is None:
            state.next_hidden = self.replay.run(index, state.own_inputs, state.hidden)
        state.hidden, state.next_hidden = state.next_hidden, None

    def run_layer(self, index: int, state: BatchState, branches: Sequence[Branch]) -> list[Tensor]:
        """The hidden states of each branch after the layer `index`."""

        def run(chosen: Sequence[Branch]) -> list[Tensor]:
            hidden = self.replay.run(index, self._find_inputs(state, len(chosen)), join_branches(chosen))
            return [*hidden.split(len(state.batch.tokens))]

        return self._run_as_fits(branches, run)

    def finish(
        self,
        start: int,
        state: BatchState,
        branches: Sequence[Branch],
        read: Reader,
        found: Mapping[int, list[BatchValues]],
    ) -> None:
        """Run branches through the layers from `start` to the last, and add the values of each to `found`."""

        def run(chosen: Sequence[Branch]) -> list[BatchValues]:
            batch, inputs = state.batch, self._find_inputs(state, len(chosen))
            # The joined states get no name here, so they are freed after the first layer.
            hidden = self.replay.run_layers(range(start, len(self.replay.layers)), inputs, join_branches(chosen))
            logits = self.replay.leave(inputs, hidden, batch.targets.shape[1])
            return [read(Readout(own, batch.targets, batch.counted)) for own in logits.split(len(batch.tokens))]

        for (key, _), values in zip(branches, self._run_as_fits(branches, run), strict=True):
            found[key].append(values)

    def find_owners(self, weights: Weights) -> set[nn.Module]:
        """The modules that hold these components."""
        return {self.model.weight_views[name].owner for name in weights}

    def _find_inputs(self, state: BatchState, branches: int) -> LayerInputs:
        """The layers' arguments for so many branches as one batch."""
        if branches not in state.inputs:
            state.inputs[branches] = self.replay.enter(state.batch.tokens.repeat(branches, 1))
        return state.inputs[branches]

    def _run_as_fits(self, branches: Sequence[Branch], run: Callable[[Sequence[Branch]], list[Result]]) -> list[Result]:
        """The results of `run` for all branches as one batch; where memory runs out, for one half after the other.

        From then on no more branches are run as one batch than were in a half.
        """
        try:
            return run(branches)
        except (torch.OutOfMemoryError, PluginError) as error:
            causes = (error, error.__cause__)  # a metric runs out of memory too
            if len(branches) == 1 or not any(isinstance(cause, torch.OutOfMemoryError) for cause in causes):
                raise
        # Not inside `except`: there the error's traceback would keep the tensors of the failed attempt.
        half = self.at_once = (len(branches) + 1) // 2
        torch.cuda.empty_cache()
        return self._run_as_fits(branches[:half], run) + self._run_as_fits(branches[half:], run)


def join_branches(branches: Sequence[Branch]) -> Tensor:
    """`[branch * sequence, length, width]`: the hidden states of all branches."""
    return torch.cat([hidden for _, hidden in branches]) if len(branches) > 1 else branches[0][1]
