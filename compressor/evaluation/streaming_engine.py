"""The engine for models larger than memory: all trials go through the layers together, and each layer is read once.

It computes the same as `Engine`, in another order. While a layer's weights are in memory, all trials run that layer.
Between layers, the hidden states of trials wait on the host or on disk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compressor.contracts import Plan
from compressor.evaluation.batches import Batch, BatchValues, Scored
from compressor.evaluation.layer_replay import LayerReplay
from compressor.evaluation.layer_runner import BatchState, Branch, LayerRunner
from compressor.evaluation.module_cache import ModuleCache
from compressor.evaluation.trial_grouping import TrialGrouping
from compressor.evaluation.weight_source import WeightSource, make_weights_in_groups
from compressor.models.tensor_spill import TensorSpill
from compressor.resources import MemoryBudget


class StreamingEngine:
    """Scores trials layer by layer; the per-sequence values of all trials come at the end.

    `weight_source` makes the weights of trials. `at_once` branches are run as one batch where they do not change a
    layer; None chooses by the device. Hidden states wait on the host as far as the budget `memory` allows, and else on
    disk.
    """

    def __init__(
        self, replay: LayerReplay, weight_source: WeightSource, memory: MemoryBudget, at_once: int | None = None
    ) -> None:
        self.replay, self.weight_source, self.memory = replay, weight_source, memory
        self.runner = LayerRunner(replay, at_once)
        self.grouping = TrialGrouping(replay.spans, len(replay.layers), replay.tied)

    def score(self, trials: Mapping[int, Plan], batches: Sequence[Batch]) -> Scored:
        """The per-sequence values of each trial."""
        if not trials:
            return
        states = [self.runner.enter(batch) for batch in batches]
        with TensorSpill(self.memory.hidden_states) as waiting:
            layer_pass = LayerPass(self.runner, self.grouping, self.weight_source, trials, states, waiting)
            nodes = [layer_pass.start()]
            for index in range(len(self.replay.layers)):
                nodes = layer_pass.run_layer(index, nodes)
            yield from layer_pass.read(nodes)


@dataclass(frozen=True)
class Node:
    """Trials that are equal so far; `key` is that of their hidden states."""

    key: int
    numbers: Sequence[int]


@dataclass
class LayerPass:
    """One pass over the layers with all trials. Hidden states are in `waiting`, by number of batch and key of node."""

    runner: LayerRunner
    grouping: TrialGrouping
    weight_source: WeightSource
    trials: Mapping[int, Plan]
    states: Sequence[BatchState]
    waiting: TensorSpill
    keys: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> Node:
        """Before the first layer all trials are equal."""
        node = Node(next(self.keys), [*self.trials])
        for place, state in enumerate(self.states):
            self.waiting.put((place, node.key), state.hidden)
        return node

    def run_layer(self, index: int, nodes: Sequence[Node]) -> list[Node]:
        """Run a layer for all trials; trials that change it in different ways get nodes of their own."""
        unchanged, changed = list[Node](), list[Node]()
        for node in nodes:
            same, others = self._split(index, node)
            self._run_changed(index, node, others)
            if not same:
                for place in range(len(self.states)):
                    self.waiting.drop((place, node.key))
            unchanged, changed = unchanged + same, changed + others
        self._run_unchanged(index, unchanged)
        return unchanged + changed

    def read(self, nodes: Sequence[Node]) -> Scored:
        """The per-sequence values of all trials after the last layer."""
        found: dict[int, list[BatchValues]] = {node.key: [] for node in nodes}
        end = len(self.runner.replay.layers)
        for place, state in enumerate(self.states):
            read = state.batch.make_reader()
            for branches in self._fetch(place, nodes):
                self.runner.finish(end, state, branches, read, found)
        yield {number: found[node.key] for node in nodes for number in node.numbers}

    def _split(self, index: int, node: Node) -> tuple[list[Node], list[Node]]:
        """The trials of a node that do not change the layer, and a node for each way in which others change it."""
        same, others = list[Node](), list[Node]()
        used = self.grouping.find_used(index)
        for numbers in self.grouping.group_equal(index, self.trials, node.numbers):
            if used.isdisjoint(self.trials[numbers[0]]):
                same.append(Node(node.key, numbers))
            else:
                others.append(Node(next(self.keys), numbers))
        return same, others

    def _run_changed(self, index: int, node: Node, others: Sequence[Node]) -> None:
        """Run the layer for nodes that change it, each with its own weights, from the hidden states of `node`."""
        replay, model = self.runner.replay, self.runner.model
        keys = {other.numbers[0]: other.key for other in others}
        plans = {number: self.trials[number] for number in keys}
        for group in make_weights_in_groups(self.weight_source, plans, self.grouping.find_used(index)):
            for place, state in enumerate(self.states):
                hidden = self.waiting.get((place, node.key)).to(model.device)
                cache = ModuleCache(replay.layers[index])
                if len(group) > 1:
                    with cache.recording():
                        replay.run(index, state.own_inputs, hidden)
                for number, weights in group.items():
                    with model.swapped(weights), cache.serving(self.runner.find_owners(weights)):
                        self.waiting.put((place, keys[number]), replay.run(index, state.own_inputs, hidden))

    def _run_unchanged(self, index: int, nodes: Sequence[Node]) -> None:
        """Run the layer for nodes that do not change it, several as one batch."""
        for place, state in enumerate(self.states):
            for branches in self._fetch(place, nodes):
                results = self.runner.run_layer(index, state, branches)
                for (key, _), hidden in zip(branches, results, strict=True):
                    self.waiting.put((place, key), hidden)

    def _fetch(self, place: int, nodes: Sequence[Node]) -> Iterator[list[Branch]]:
        """The hidden states of nodes on a batch, back on the device, as many as are run as one batch."""
        start, device = 0, self.runner.model.device
        while start < len(nodes):
            chosen = nodes[start : start + self.runner.at_once]
            start += len(chosen)
            yield [(node.key, self.waiting.get((place, node.key)).to(device)) for node in chosen]
