"""Leading tokens of a trial, where nothing else is read: positions come in parts, and a known sequence stops there."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import Cache

from compressor.evaluation.layer_replay import LayerReplay
from compressor.evaluation.module_cache import ModuleCache


def split_positions(length: int, keep: int) -> list[int]:
    """Where the parts of `length` positions end: a quarter of the last `keep`, then twice as many each."""
    size = max(1, keep // 4)
    stops, stop = [], length - keep
    while stop < length:
        stop = min(length, stop + size)
        stops.append(stop)
        size *= 2
    return stops


class FirstDivergence:
    """Counts them for trials that first change the layer `index`.

    `hidden` `[sequence, length, width]` is what enters that layer after `tokens` `[sequence, length]`, of which the
    last positions should predict `said` `[sequence, keep]`.
    """

    def __init__(self, replay: LayerReplay, index: int, tokens: Tensor, hidden: Tensor, said: Tensor) -> None:
        self.replay, self.index, self.tokens, self.said = replay, index, tokens, said
        self.hidden = hidden
        self.stops = split_positions(tokens.shape[1], said.shape[1])
        self._entry = replay.enter(tokens[:, : self.stops[0]], 0)
        self._first = hidden[:, : self.stops[0]]
        self._memo, self._cache = ModuleCache(replay.layers[index]), replay.make_cache()
        with self._memo.recording():
            replay.run(index, self._entry, self._first, self._cache)

    def count(self, changed: Collection[nn.Module]) -> Tensor:
        """`[sequence]`; the model has the weights of the trial on the modules `changed`."""
        found = torch.zeros(len(self.tokens), dtype=torch.long, device=self.said.device)
        alive = torch.arange(len(found), device=found.device)
        cache, start = self.replay.make_cache(), 0
        for stop in self.stops:
            agrees = self._predict(changed, alive, start, stop, cache)
            added = agrees.long().cumprod(-1).sum(-1)
            found[alive] += added
            going_on = (added == agrees.shape[1]).nonzero().flatten()
            if not len(going_on):
                break
            alive, start = alive[going_on], stop
            cache.batch_select_indices(going_on)
        return found

    def _predict(self, changed: Collection[nn.Module], alive: Tensor, start: int, stop: int, cache: Cache) -> Tensor:
        """`[sequence, position]`: are the predictions of the sequences `alive` from `start` to `stop` what was said?"""
        if start == 0:
            entry = self._entry
            with self._memo.serving(changed):
                hidden = self.replay.run(self.index, entry, self._first, cache)
            self._adopt(cache)
        else:
            entry = self.replay.enter(self.tokens[alive.cpu(), :stop], start)
            hidden = self.replay.run(self.index, entry, self.hidden[alive, start:stop], cache)
        for later in range(self.index + 1, len(self.replay.layers)):
            hidden = self.replay.run(later, entry, hidden, cache)
        before = self.tokens.shape[1] - self.said.shape[1]
        first = max(0, start - before)
        logits = self.replay.leave(entry, hidden, stop - before - first)
        return logits.argmax(-1) == self.said[alive, first : stop - before]

    def _adopt(self, cache: Cache) -> None:
        """Where the memo served the attention, its keys and values are those of the model as it stands."""
        if not cache.get_seq_length(self.index):
            cache.layers[self.index] = copy.copy(self._cache.layers[self.index])
