"""Which trials can share computation: trials that change a layer in the same way need it only once.

A trial is a plan. Two trials change a component in the same way when they give it equal treatments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from compressor.contracts import Plan


@dataclass(frozen=True)
class TrialGrouping:
    """Groups trials by the layers that they change, in a model with so many `layers`.

    `spans` holds for each component the first and the last layer that use it. `tied` are the components that share
    memory with another component. A trial that changes one of them is never grouped with other trials, because the
    weight of a tied component depends on what the other one was changed to.
    """

    spans: Mapping[str, tuple[int, int]]
    layers: int
    tied: frozenset[str] = frozenset()

    def find_first_layer(self, trial: Plan) -> int:
        """The first layer that the trial changes; the number of layers where it changes none."""
        return min((self.spans[name][0] for name in trial), default=self.layers)

    def find_last_layer(self, names: Collection[str]) -> int:
        """The last layer that uses one of these components."""
        return max(self.spans[name][1] for name in names)

    def find_changes(self, index: int, trial: Plan) -> list[str]:
        """The changed components that are first used by the layer `index`."""
        return [name for name in trial if self.spans[name][0] == index]

    def find_used(self, index: int) -> set[str]:
        """The components that the layer `index` uses."""
        return {name for name, (first, last) in self.spans.items() if first <= index <= last}

    def sort_by_first_layer(self, trials: Mapping[int, Plan]) -> dict[int, list[int]]:
        """First changed layer -> numbers of trials."""
        found: dict[int, list[int]] = {}
        for number, trial in trials.items():
            found.setdefault(self.find_first_layer(trial), []).append(number)
        return found

    def group_equal(self, index: int, trials: Mapping[int, Plan], numbers: Sequence[int]) -> list[list[int]]:
        """Groups of trials that make the same changes to components which are first used by the layer `index`."""
        groups: dict[object, list[int]] = {}
        for number in numbers:
            trial = trials[number]
            changes = frozenset((name, trial[name]) for name in self.find_changes(index, trial))
            is_alone = changes and not self.tied.isdisjoint(trial)
            groups.setdefault(number if is_alone else changes, []).append(number)
        return [*groups.values()]

    def choose_shared(
        self, index: int, trials: Mapping[int, Plan], numbers: Sequence[int], share: float = 1.0
    ) -> tuple[list[int], list[list[int]]]:
        """Of trials whose first changed layer is `index`: the trials to run separately, and the groups to run together.

        The trials of a group are equal up to the layer in which they next differ. Together they cost the layers up to
        the last of these. Separately, each trial costs the layers up to its own, times the `share` of a layer's work
        that a separate trial needs. The cheaper way is chosen.
        """
        separate, shared = list[int](), list[list[int]]()
        for group in self.group_equal(index, trials, numbers):
            names = self.find_changes(index, trials[group[0]])
            common = [self.find_first_layer(drop_components(trials[number], names)) - index for number in group]
            if len(group) > 1 and max(common) < share * sum(common):
                shared.append(group)
            else:
                separate += group
        return separate, shared


def drop_components(trial: Plan, names: Collection[str]) -> Plan:
    """The trial without its changes of these components."""
    return {name: treatment for name, treatment in trial.items() if name not in names}
