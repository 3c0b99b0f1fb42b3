"""Scores many trials in one pass over the layers: what trials share is computed once, and nothing is approximate.

The layers before a trial's first change give the same as in the current model. So the current model is run layer by
layer, and each trial branches off at its first changed layer. There, modules that the change does not reach are not
run again. Trials that make the same change branch off together, and separate where they first differ: trials form a
tree. After its last changed layer, a trial can be run as one batch with other trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from compressor.contracts import Plan, Readout
from compressor.evaluation.batches import Batch, BatchValues, Scored
from compressor.evaluation.first_divergence import FirstDivergence
from compressor.evaluation.layer_replay import LayerReplay
from compressor.evaluation.layer_runner import BatchState, Branch, LayerRunner
from compressor.evaluation.module_cache import ModuleCache
from compressor.evaluation.trial_grouping import TrialGrouping, drop_components
from compressor.evaluation.weight_source import Weights, WeightSource, make_weights, make_weights_in_groups

DIVERGENCE_SHARE = 0.5
"""The share of the layers' work that a trial needs, roughly, where only its first divergence is read."""


class Engine:
    """Scores trials on `replay.model` as it is when they are scored; `weight_source` makes the weights of trials.

    `at_once` branches are run as one batch after their last change; None chooses by the device.
    """

    def __init__(self, replay: LayerReplay, weight_source: WeightSource, at_once: int | None = None) -> None:
        self.replay, self.model, self.weight_source = replay, replay.model, weight_source
        self.runner = LayerRunner(replay, at_once)
        self.grouping = TrialGrouping(replay.spans, len(replay.layers), replay.tied)

    def score(self, trials: Mapping[int, Plan], batches: Sequence[Batch]) -> Scored:
        """The per-sequence values of each trial as they come. Do not use the model before the last trial has come."""
        yield from self._score_from(0, [self.runner.enter(batch) for batch in batches], trials)

    def _score_from(self, start: int, states: Sequence[BatchState], trials: Mapping[int, Plan]) -> Scored:
        """Score trials on the current model, in which the batches have come to the layer `start`.

        No trial changes an earlier layer.
        """
        is_short = self.replay.splits_positions and all(state.batch.only_leading for state in states)
        share = DIVERGENCE_SHARE if is_short else 1.0
        waiting = self.grouping.sort_by_first_layer(trials)
        yield from self._score_unchanged(start, states, waiting.pop(len(self.replay.layers), []))
        for index in range(start, max(waiting, default=-1) + 1):
            numbers = waiting.pop(index, [])
            separate, shared = self.grouping.choose_shared(index, trials, numbers, share)
            plans = {number: trials[number] for number in separate}
            for group in make_weights_in_groups(self.weight_source, plans):
                found: dict[int, list[BatchValues]] = {number: [] for number in group}
                for state in states:
                    self._score_separate(index, state, group, found)
                yield found
            for numbers in shared:
                yield from self._score_shared(index, states, {number: trials[number] for number in numbers})
            for state in states if waiting else ():
                self.runner.advance(index, state)

    def _score_unchanged(self, start: int, states: Sequence[BatchState], numbers: Sequence[int]) -> Scored:
        """Score trials that change nothing more: all of them are the current model."""
        if not numbers:
            return
        found: dict[int, list[BatchValues]] = {numbers[0]: []}
        for state in states:
            self.runner.finish(start, state, [(numbers[0], state.hidden)], state.batch.make_reader(), found)
        yield {number: found[numbers[0]] for number in numbers}

    def _score_shared(self, index: int, states: Sequence[BatchState], trials: Mapping[int, Plan]) -> Scored:
        """Score trials that change the layer `index` in the same way: the changed layer is run once for all of them."""
        first = next(iter(trials.values()))
        names = self.grouping.find_changes(index, first)
        with self.model.swapped(make_weights(self.weight_source, first, names)):
            changed = [
                BatchState(state.batch, self.replay.run(index, state.own_inputs, state.hidden), state.inputs)
                for state in states
            ]
            rest = {number: drop_components(trial, names) for number, trial in trials.items()}
            yield from self._score_from(index + 1, changed, rest)

    def _score_separate(
        self,
        index: int,
        state: BatchState,
        group: Mapping[int, Weights],
        found: Mapping[int, list[BatchValues]],
    ) -> None:
        """Add the per-sequence values of a batch for trials whose first changed layer is `index`."""
        if state.batch.only_leading and self.replay.splits_positions:
            simple = {number: weights for number, weights in group.items() if not self._transforms_inputs(weights)}
            if simple:
                self._score_first_divergence(index, state, simple, found)
            group = {number: weights for number, weights in group.items() if number not in simple}
            if not group:
                return
        cache, inputs = ModuleCache(self.replay.layers[index]), state.own_inputs
        with cache.recording():
            state.next_hidden = self.replay.run(index, inputs, state.hidden)
        changed: dict[int, list[Branch]] = {}  # by the last changed layer
        read = state.batch.make_reader()
        for number, weights in group.items():
            last = self.grouping.find_last_layer(weights)
            with self.model.swapped(weights):
                with cache.serving(self.runner.find_owners(weights)):
                    hidden = self.replay.run(index, inputs, state.hidden)
                hidden = self.replay.run_layers(range(index + 1, last + 1), inputs, hidden)
            branches = changed.setdefault(last, [])
            branches.append((number, hidden))
            if len(branches) >= self.runner.at_once:
                self.runner.finish(last + 1, state, changed.pop(last), read, found)
        for last, branches in changed.items():
            self.runner.finish(last + 1, state, branches, read, found)

    def _score_first_divergence(
        self,
        index: int,
        state: BatchState,
        group: Mapping[int, Weights],
        found: Mapping[int, list[BatchValues]],
    ) -> None:
        """As `_score_separate`, where nothing but the first divergence is read."""
        batch = state.batch
        divergence = FirstDivergence(self.replay, index, batch.tokens, state.hidden, batch.targets)
        read = batch.make_reader()
        for number, weights in group.items():
            with self.model.swapped(weights):
                leading = divergence.count(self.runner.find_owners(weights))
            found[number].append(read(Readout(_refuse_logits, batch.targets, leading=leading)))

    def _transforms_inputs(self, weights: Weights) -> bool:
        """Are any inputs rounded, by these weights or in the current model?

        A difference in the last bit can then change a rounded input, so positions are not split.
        """
        return bool(self.model.input_transforms) or any(weight.input_transform for weight in weights.values())


def _refuse_logits() -> Tensor:
    raise AssertionError("only leading tokens were counted")
