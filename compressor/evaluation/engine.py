"""Scores many trials in one walk over the layers: what they share is computed once, and nothing is approximate.

Layers before a trial's first change give what they give in the model as it stands, so the walk carries that along, and
a trial branches off at its first changed layer. There, modules that the change does not reach are not run again.
Trials that change a layer alike branch off together, and part where they first differ: the walk is one over a tree.
Behind its last changed layer a trial is a batch of hidden states like any other, and may go on together with others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.contracts import Plan, Readout
from compressor.evaluation.batches import Batch, Found
from compressor.evaluation.first_divergence import FirstDivergence
from compressor.evaluation.layer_replay import Entry, LayerReplay
from compressor.evaluation.module_cache import ModuleCache
from compressor.evaluation.trials import Branching, drop
from compressor.evaluation.weight_source import Weights, WeightSource, make_weights

Branch = tuple[int, Tensor]
"""The number of a trial and its hidden states `[sequence, length, width]`."""

HELD = 1 << 28
"""Bytes of trial weights that are held at once; one trial may need more.

A constant, not a share of the memory budget: which trials are held at once decides which go on as one batch on a GPU,
and the rounding of its kernels depends on the shape of the batch.
"""
LEADING_SHARE = 0.5
"""Of the layers of a trial of which only leading tokens are read, about: it stops where they are known."""


@dataclass
class BatchState:
    """A batch on its way through the layers: `hidden` is what enters the layer that the walk has come to."""

    batch: Batch
    hidden: Tensor
    entries: dict[int, Entry] = field(default_factory=dict)
    following: Tensor | None = None


class Engine:
    """Scores trials on `replay.model` as it stands; `joint` trials go on together behind their last change.

    On a CPU one at a time: the same kernels on the same shapes give the same bits as plain forward passes.
    `weight_source` makes the weights of trials.
    """

    def __init__(self, replay: LayerReplay, weight_source: WeightSource, joint: int | None = None) -> None:
        self.replay, self.model, self.weight_source = replay, replay.model, weight_source
        self.branching = Branching(replay.spans, len(replay.layers), replay.entangled)
        self.joint = joint or (1 if self.model.device.type == "cpu" else 64)

    def takes(self, trial: Plan) -> bool:
        """Does the trial change layers, and nothing else?"""
        return bool(trial) and all(name in self.replay.spans for name in trial)

    def score(self, trials: Mapping[int, Plan], batches: Sequence[Batch]) -> Iterator[tuple[int, list[Found]]]:
        """What each trial gives on each batch, with its number; the model is not to be used in between."""
        yield from self._walk(0, [self.enter(batch) for batch in batches], trials)

    def _walk(
        self, start: int, states: Sequence[BatchState], trials: Mapping[int, Plan]
    ) -> Iterator[tuple[int, list[Found]]]:
        """Trials on the model as it stands now, which all change it in the layer `start` or later, or not at all."""
        waiting = self.branching.sort(trials)
        yield from self._end(start, states, waiting.pop(len(self.replay.layers), []))
        for index in range(start, max(waiting, default=-1) + 1):
            alone, alike = self._part(index, trials, waiting.pop(index, []), states)
            for group in self.make_weights(trials, alone):
                found: dict[int, list[Found]] = {number: [] for number in group}
                for state in states:
                    self._branch_off(index, state, group, found)
                yield from found.items()
            for numbers in alike:
                yield from self._branch_off_together(index, states, {number: trials[number] for number in numbers})
            for state in states if waiting else ():
                self.advance(index, state)

    def _branch_off_together(
        self, index: int, states: Sequence[BatchState], trials: Mapping[int, Plan]
    ) -> Iterator[tuple[int, list[Found]]]:
        """Trials that change the layer `index` alike: it is run once, and they part behind it."""
        first = next(iter(trials.values()))
        names = self.branching.find_changes(index, first)
        with self.model.swapped(make_weights(self.weight_source, first, names)):
            behind = [
                BatchState(state.batch, self.replay.run(index, state.entries[1], state.hidden), state.entries)
                for state in states
            ]
            rest = {number: drop(trial, names) for number, trial in trials.items()}
            yield from self._walk(index + 1, behind, rest)

    def _end(
        self, start: int, states: Sequence[BatchState], numbers: Sequence[int]
    ) -> Iterator[tuple[int, list[Found]]]:
        """Trials that are the model as it stands now: all the same, from the layer `start` on."""
        if not numbers:
            return
        found: dict[int, list[Found]] = {numbers[0]: []}
        for state in states:
            with state.batch.opened() as read:
                self._finish(start, state, [(numbers[0], state.hidden)], read, found)
        yield from ((number, found[numbers[0]]) for number in numbers)

    def _part(
        self, index: int, trials: Mapping[int, Plan], numbers: Sequence[int], states: Sequence[BatchState]
    ) -> tuple[list[int], list[list[int]]]:
        """Of trials that first change the layer `index`: those that go alone, and those that go together."""
        only_leading = self.replay.splits and all(state.batch.only_leading for state in states)
        return self.branching.part(index, trials, numbers, LEADING_SHARE if only_leading else 1.0)

    def enter(self, batch: Batch) -> BatchState:
        entry = self.replay.enter(batch.tokens)
        return BatchState(batch, entry.hidden, {1: entry})

    def advance(self, index: int, state: BatchState) -> None:
        """Bring the model as it stands behind a layer."""
        if state.following is None:
            state.following = self.replay.run(index, state.entries[1], state.hidden)
        state.hidden, state.following = state.following, None

    def repeat(self, state: BatchState, times: int) -> Entry:
        """The entry of so many branches together."""
        if times not in state.entries:
            state.entries[times] = self.replay.enter(state.batch.tokens.repeat(times, 1))
        return state.entries[times]

    def make_weights(
        self, trials: Mapping[int, Plan], numbers: Sequence[int], names: Collection[str] | None = None
    ) -> Iterator[dict[int, Weights]]:
        """The weights of these trials, made once, as many at a time as may be held; all, or those of `names`."""
        group: dict[int, Weights] = {}
        held = 0
        for number in numbers:
            group[number] = make_weights(self.weight_source, trials[number], names)
            held += sum(weight.nbytes for weight in group[number].values())
            if held >= HELD:
                yield group
                group, held = {}, 0
        if group:
            yield group

    def _branch_off(
        self, index: int, state: BatchState, group: Mapping[int, Weights], found: Mapping[int, list[Found]]
    ) -> None:
        """Run trials that first change the layer `index` from there to their per-sequence values."""
        if state.batch.only_leading and self.replay.splits:
            parted = {number: weights for number, weights in group.items() if not self.transforms_inputs(weights)}
            if parted:
                self._count_leading(index, state, parted, found)
            group = {number: weights for number, weights in group.items() if number not in parted}
            if not group:
                return
        memo, entry = ModuleCache(self.replay.layers[index]), state.entries[1]
        with memo.recording():
            state.following = self.replay.run(index, entry, state.hidden)
        changed: dict[int, list[Branch]] = {}
        with state.batch.opened() as read:
            for number, weights in group.items():
                last = max(self.replay.spans[name][1] for name in weights)
                with self.model.swapped(weights):
                    with memo.serving(self.find_owners(weights)):
                        hidden = self.replay.run(index, entry, state.hidden)
                    for later in range(index + 1, last + 1):
                        hidden = self.replay.run(later, entry, hidden)
                together = changed.setdefault(last, [])
                together.append((number, hidden))
                if len(together) >= self.joint:
                    self._finish(last + 1, state, changed.pop(last), read, found)
            for last, together in changed.items():
                self._finish(last + 1, state, together, read, found)

    def _count_leading(
        self, index: int, state: BatchState, group: Mapping[int, Weights], found: Mapping[int, list[Found]]
    ) -> None:
        """The same where only the first divergence is asked for."""
        batch = state.batch
        leading = FirstDivergence(self.replay, index, batch.tokens, state.hidden, batch.said)
        with batch.opened() as read:
            for number, weights in group.items():
                with self.model.swapped(weights):
                    count = leading.count(self.find_owners(weights))
                found[number].append(read(Readout(_refuse_logits, batch.said, leading=count)))

    def transforms_inputs(self, weights: Weights) -> bool:
        """Would these, or others on the model, treat inputs? Rounding then hangs on the last bit of a position."""
        return bool(self.model.input_transforms) or any(weight.input_transform for weight in weights.values())

    def find_owners(self, weights: Weights) -> set[nn.Module]:
        return {self.model.weight_views[name].owner for name in weights}

    def _finish(
        self,
        index: int,
        state: BatchState,
        together: Sequence[Branch],
        read: Callable[[Readout], Found],
        found: Mapping[int, list[Found]],
    ) -> None:
        """Run branches on through the layers from `index`, which they leave as they are, and read what they say."""

        def go_on(members: Sequence[Branch]) -> None:
            entry, hidden = self.repeat(state, len(members)), join_branches(members)
            for later in range(index, len(self.replay.layers)):
                hidden = self.replay.run(later, entry, hidden)
            for number, candidate in self.leave(state, members, hidden):
                found[number].append(read(candidate))

        self.fit(together, go_on)

    def leave(self, state: BatchState, members: Sequence[Branch], hidden: Tensor) -> Iterator[tuple[int, Readout]]:
        """What each of the branches says, from what the last layer gave for all of them."""
        batch = state.batch
        logits = self.replay.leave(self.repeat(state, len(members)), hidden, batch.said.shape[1])
        for (number, _), own in zip(members, logits.split(len(batch.tokens)), strict=True):
            yield number, Readout(own, batch.said, batch.counted)

    def fit(self, members: Sequence[Branch], work: Callable[[Sequence[Branch]], None]) -> None:
        """Do the work for all members together, or in halves where memory does not hold it; that is remembered."""
        try:
            work(members)
        except torch.OutOfMemoryError:
            if len(members) == 1:
                raise
            half = self.joint = (len(members) + 1) // 2
            torch.cuda.empty_cache()
            self.fit(members[:half], work)
            self.fit(members[half:], work)


def join_branches(members: Sequence[Branch]) -> Tensor:
    """`[branch * sequence, length, width]`"""
    return torch.cat([hidden for _, hidden in members]) if len(members) > 1 else members[0][1]


def _refuse_logits() -> Tensor:
    raise AssertionError("only leading tokens were counted")
