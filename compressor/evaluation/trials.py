"""Trials, and where they part: those that change a layer alike are one until they first differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from compressor.models import Replacement

Weights = Mapping[str, Tensor | Replacement]
"""Component name -> dense weight `[out, in]`, which may come with what becomes of its inputs."""


@dataclass(frozen=True)
class Trial:
    """Weights to put on some components; `makers` give them, dense `[out, in]`, when they are needed.

    A mere weight leaves its inputs as they are, a product says what becomes of them. Trials that have the very same
    maker for a component have the same there.
    """

    makers: Mapping[str, Callable[[], Tensor | Replacement]]

    @classmethod
    def of(cls, weights: Weights) -> Trial:
        """With weights that are there already."""
        return cls({name: partial(_give, weight) for name, weight in weights.items()})

    @property
    def names(self) -> list[str]:
        """The components that are changed."""
        return list(self.makers)

    def without(self, names: Collection[str]) -> Trial:
        """The rest of its changes."""
        return Trial({name: maker for name, maker in self.makers.items() if name not in names})

    def make(self, names: Collection[str] | None = None) -> dict[str, Tensor | Replacement]:
        """The weights, or those of `names` only."""
        return {name: maker() for name, maker in self.makers.items() if names is None or name in names}


@dataclass(frozen=True)
class Branching:
    """How trials part on their way through `layers` layers.

    `spans` is, by component, the first and the last layer that use it. Trials of `entangled` components go alone: what
    one of these is depends on what another was changed to.
    """

    spans: Mapping[str, tuple[int, int]]
    layers: int
    entangled: frozenset[str] = frozenset()

    def find_first(self, trial: Trial) -> int:
        """The first changed layer; behind the last one where there is none."""
        return min((self.spans[name][0] for name in trial.names), default=self.layers)

    def find_changes(self, index: int, trial: Trial) -> list[str]:
        """The changed components whose first layer is `index`."""
        return [name for name in trial.names if self.spans[name][0] == index]

    def sort(self, trials: Mapping[int, Trial]) -> dict[int, list[int]]:
        """First changed layer -> numbers of trials."""
        waiting: dict[int, list[int]] = {}
        for number, trial in trials.items():
            waiting.setdefault(self.find_first(trial), []).append(number)
        return waiting

    def sort_alike(self, index: int, trials: Mapping[int, Trial], numbers: Sequence[int]) -> list[list[int]]:
        """Groups of trials whose changes that begin in the layer `index` are the same."""
        groups: dict[object, list[int]] = {}
        for number in numbers:
            trial = trials[number]
            changes = frozenset((name, id(trial.makers[name])) for name in self.find_changes(index, trial))
            is_alone = changes and not self.entangled.isdisjoint(trial.names)
            groups.setdefault(number if is_alone else changes, []).append(number)
        return [*groups.values()]

    def part(
        self, index: int, trials: Mapping[int, Trial], numbers: Sequence[int], share: float = 1.0
    ) -> tuple[list[int], list[list[int]]]:
        """Of trials that first change the layer `index`: those that go alone, and those that go together.

        To go together costs the layers up to where the last one leaves, and saves each the layers up to where it
        leaves, of which it would need a `share`.
        """
        alone, together = list[int](), list[list[int]]()
        for group in self.sort_alike(index, trials, numbers):
            names = self.find_changes(index, trials[group[0]])
            common = [self.find_first(trials[number].without(names)) - index for number in group]
            if len(group) > 1 and max(common) < share * sum(common):
                together.append(group)
            else:
                alone += group
        return alone, together


def _give(weight: Tensor | Replacement) -> Tensor | Replacement:
    return weight
