"""Which trials can share computation: trials that change a layer in the same way are computed once for that layer.

A trial is a plan. Two trials change a component in the same way when they give it equal treatments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from compressor.contracts import Plan


@dataclass(frozen=True)
class Branching:
    """How trials part on their way through `layers` layers.

    `spans` is, by component, the first and the last layer that use it. Trials of `entangled` components go alone: what
    one of these is depends on what another was changed to.
    """

    spans: Mapping[str, tuple[int, int]]
    layers: int
    entangled: frozenset[str] = frozenset()

    def find_first(self, trial: Plan) -> int:
        """The first changed layer; behind the last one where there is none."""
        return min((self.spans[name][0] for name in trial), default=self.layers)

    def find_changes(self, index: int, trial: Plan) -> list[str]:
        """The changed components whose first layer is `index`."""
        return [name for name in trial if self.spans[name][0] == index]

    def sort(self, trials: Mapping[int, Plan]) -> dict[int, list[int]]:
        """First changed layer -> numbers of trials."""
        waiting: dict[int, list[int]] = {}
        for number, trial in trials.items():
            waiting.setdefault(self.find_first(trial), []).append(number)
        return waiting

    def sort_alike(self, index: int, trials: Mapping[int, Plan], numbers: Sequence[int]) -> list[list[int]]:
        """Groups of trials whose changes that begin in the layer `index` are the same."""
        groups: dict[object, list[int]] = {}
        for number in numbers:
            trial = trials[number]
            changes = frozenset((name, trial[name]) for name in self.find_changes(index, trial))
            is_alone = changes and not self.entangled.isdisjoint(trial)
            groups.setdefault(number if is_alone else changes, []).append(number)
        return [*groups.values()]

    def part(
        self, index: int, trials: Mapping[int, Plan], numbers: Sequence[int], share: float = 1.0
    ) -> tuple[list[int], list[list[int]]]:
        """Of trials that first change the layer `index`: those that go alone, and those that go together.

        To go together costs the layers up to where the last one leaves, and saves each the layers up to where it
        leaves, of which it would need a `share`.
        """
        alone, together = list[int](), list[list[int]]()
        for group in self.sort_alike(index, trials, numbers):
            names = self.find_changes(index, trials[group[0]])
            common = [self.find_first(drop(trials[number], names)) - index for number in group]
            if len(group) > 1 and max(common) < share * sum(common):
                together.append(group)
            else:
                alone += group
        return alone, together


def drop(trial: Plan, names: Collection[str]) -> Plan:
    """The trial without its changes of these components."""
    return {name: treatment for name, treatment in trial.items() if name not in names}
