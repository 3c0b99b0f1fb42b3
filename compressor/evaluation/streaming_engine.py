"""The engine for models larger than memory: all trials go through the layers together, and each layer is read once.

What `Engine` computes is computed here too, in another order: level by level of the tree of trials. A layer's weights
are there for all that are on their way; their hidden states wait on the host, or on disk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from compressor.contracts import Plan, Readout
from compressor.evaluation.batches import Batch, Found
from compressor.evaluation.engine import BatchState, Branch, Engine, join_branches
from compressor.evaluation.layer_replay import LayerReplay
from compressor.evaluation.module_cache import ModuleCache
from compressor.evaluation.weight_source import WeightSource
from compressor.models.tensor_spill import TensorSpill
from compressor.resources import MemoryBudget


@dataclass(frozen=True)
class Node:
    """Trials that are the same so far, and the key of their hidden states."""

    key: int
    numbers: Sequence[int]


class StreamingEngine(Engine):
    """Scores trials layer by layer; their per-sequence values come at the end, all at once.

    Hidden states are on the host as far as the budget `memory` allows, and else on disk.
    """

    def __init__(
        self, replay: LayerReplay, weight_source: WeightSource, memory: MemoryBudget, joint: int | None = None
    ) -> None:
        super().__init__(replay, weight_source, joint)
        self.memory = memory

    def score(self, trials: Mapping[int, Plan], batches: Sequence[Batch]) -> Iterator[tuple[int, list[Found]]]:
        """What each trial gives on each batch, with its number."""
        states, keys = [self.enter(batch) for batch in batches], itertools.count()
        nodes = [Node(next(keys), [*trials])] if trials else []
        with TensorSpill(self.memory.hidden_states) as hidden_states:
            for node in nodes:
                for place, state in enumerate(states):
                    hidden_states.put((place, node.key), state.hidden)
            for index in range(len(self.replay.layers)):
                unchanged, changed = list[Node](), list[Node]()
                for node in nodes:
                    same, others = self._split(index, node, trials, keys)
                    self._pass_changed(index, node, others, trials, states, hidden_states)
                    if not same:
                        self._forget(node, states, hidden_states)
                    unchanged, changed = unchanged + same, changed + others
                self._pass_unchanged(index, unchanged, states, hidden_states)
                nodes = unchanged + changed
            yield from self._read(nodes, states, hidden_states)

    def _split(
        self, index: int, node: Node, trials: Mapping[int, Plan], keys: Iterator[int]
    ) -> tuple[list[Node], list[Node]]:
        """The trials of a node that leave the layer as it is, and groups of those that change it alike."""
        same, others = list[Node](), list[Node]()
        for part in self.branching.sort_alike(index, trials, node.numbers):
            if self._find_used(index).isdisjoint(trials[part[0]]):
                same.append(Node(node.key, part))
            else:
                others.append(Node(next(keys), part))
        return same, others

    def _find_used(self, index: int) -> set[str]:
        """The components that the layer uses."""
        return {name for name, (first, last) in self.replay.spans.items() if first <= index <= last}

    def _pass_changed(
        self,
        index: int,
        node: Node,
        others: Sequence[Node],
        trials: Mapping[int, Plan],
        states: Sequence[BatchState],
        hidden_states: TensorSpill,
    ) -> None:
        """Trials that change this layer leave the node, each group in its own way."""
        for group in self.make_weights(trials, [other.numbers[0] for other in others], self._find_used(index)):
            for place, state in enumerate(states):
                hidden, memo = (
                    hidden_states.get((place, node.key)).to(self.model.device),
                    ModuleCache(self.replay.layers[index]),
                )
                if len(group) > 1:
                    with memo.recording():
                        self.replay.run(index, state.entries[1], hidden)
                for other in others:
                    if (weights := group.get(other.numbers[0])) is not None:
                        with self.model.swapped(weights), memo.serving(self.find_owners(weights)):
                            hidden_states.put((place, other.key), self.replay.run(index, state.entries[1], hidden))

    def _pass_unchanged(
        self, index: int, nodes: Sequence[Node], states: Sequence[BatchState], hidden_states: TensorSpill
    ) -> None:
        """The others run it together."""
        for place, state in enumerate(states):

            def go_on(members: Sequence[Branch], place: int = place, state: BatchState = state) -> None:
                entry = self.repeat(state, len(members))
                hidden = self.replay.run(index, entry, join_branches(members))
                for (key, _), own in zip(members, hidden.split(len(state.batch.tokens)), strict=True):
                    hidden_states.put((place, key), own)

            for members in self._gather(place, nodes, hidden_states):
                self.fit(members, go_on)

    def _forget(self, node: Node, states: Sequence[BatchState], hidden_states: TensorSpill) -> None:
        for place in range(len(states)):
            hidden_states.drop((place, node.key))

    def _gather(self, place: int, nodes: Sequence[Node], hidden_states: TensorSpill) -> Iterator[list[Branch]]:
        """As many nodes on a batch as may go together, back on the device."""
        start = 0
        while start < len(nodes):
            chosen = nodes[start : start + self.joint]
            start += len(chosen)
            yield [(node.key, hidden_states.get((place, node.key)).to(self.model.device)) for node in chosen]

    def _read(
        self, nodes: Sequence[Node], states: Sequence[BatchState], hidden_states: TensorSpill
    ) -> Iterator[tuple[int, list[Found]]]:
        found: dict[int, list[Found]] = {node.key: [] for node in nodes}
        for place, state in enumerate(states):
            with state.batch.opened() as read:

                def go_on(
                    members: Sequence[Branch], state: BatchState = state, read: Callable[[Readout], Found] = read
                ) -> None:
                    for key, candidate in self.leave(state, members, join_branches(members)):
                        found[key].append(read(candidate))

                for members in self._gather(place, nodes, hidden_states):
                    self.fit(members, go_on)
        yield from ((number, found[node.key]) for node in nodes for number in node.numbers)
