"""Counts leading tokens of trials where nothing else is read: a sequence stops at its first divergence.

Positions are run in pieces, the early ones first. A sequence whose first divergence is in a piece needs no later piece.
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import Cache

from compressor.evaluation.layer_replay import LayerReplay
from compressor.evaluation.module_cache import ModuleCache


def split_positions(length: int, keep: int) -> list[int]:
    """Where the pieces of `length` positions end.

    The first piece ends after a quarter of the last `keep` positions; each further piece is twice as long as that
    quarter, four times as long, and so on.
    """
    size = max(1, keep // 4)
    stops, stop = [], length - keep
    while stop < length:
        stop = min(length, stop + size)
        stops.append(stop)
        size *= 2
    return stops


class FirstDivergence:
    """Counts leading tokens for trials whose first changed layer is `index`.

    `hidden` `[sequence, length, width]` is the input of that layer for `tokens` `[sequence, length]`. The last
    positions of these should predict `targets` `[sequence, keep]`.
    """

    def __init__(self, replay: LayerReplay, index: int, tokens: Tensor, hidden: Tensor, targets: Tensor) -> None:
        self.replay, self.index, self.tokens, self.hidden, self.targets = replay, index, tokens, hidden, targets
        self.stops = split_positions(tokens.shape[1], targets.shape[1])
        self._inputs = replay.enter(tokens[:, : self.stops[0]], 0)
        self._first = hidden[:, : self.stops[0]]
        self._module_cache, self._key_values = ModuleCache(replay.layers[index]), replay.make_cache()
        with self._module_cache.recording():
            replay.run(index, self._inputs, self._first, self._key_values)

    def count(self, changed: Collection[nn.Module]) -> Tensor:
        """`[sequence]` leading tokens that agree. The model has the trial's weights, on the modules `changed`."""
        found = torch.zeros(len(self.tokens), dtype=torch.long, device=self.targets.device)
        alive = torch.arange(len(found), device=found.device)
        key_values, start = self.replay.make_cache(), 0
        for stop in self.stops:
            agrees = self._predict(changed, alive, start, stop, key_values)
            added = agrees.long().cumprod(-1).sum(-1)
            found[alive] += added
            undecided = (added == agrees.shape[1]).nonzero().flatten()
            if not len(undecided):
                break
            alive, start = alive[undecided], stop
            key_values.batch_select_indices(undecided)
        return found

    def _predict(
        self, changed: Collection[nn.Module], alive: Tensor, start: int, stop: int, key_values: Cache
    ) -> Tensor:
        """`[sequence, position]`: do the sequences `alive` predict their targets at the positions `start` to `stop`?"""
        if start == 0:
            inputs = self._inputs
            with self._module_cache.serving(changed):
                hidden = self.replay.run(self.index, inputs, self._first, key_values)
            # Where the attention's output came from the module cache, use the current model's keys and values too.
            if not key_values.get_seq_length(self.index):
                key_values.layers[self.index] = copy.copy(self._key_values.layers[self.index])
        else:
            inputs = self.replay.enter(self.tokens[alive.cpu(), :stop], start)
            hidden = self.replay.run(self.index, inputs, self.hidden[alive, start:stop], key_values)
        hidden = self.replay.run_layers(range(self.index + 1, len(self.replay.layers)), inputs, hidden, key_values)
        before = self.tokens.shape[1] - self.targets.shape[1]
        first = max(0, start - before)
        logits = self.replay.leave(inputs, hidden, stop - before - first)
        return logits.argmax(-1) == self.targets[alive, first : stop - before]
