"""The search space of an evolution: an integer level per component (higher means a larger amount), and switches."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Offer, Treatment

from .. import water_filling
from ..targets import Span, Vector

State = tuple[int, ...]
"""A level per component, in the order of the problem."""

Counts = NDArray[np.int64]
DRAWS = 50
"""How many switches are tried for each offspring that differs from the others."""


@dataclass(frozen=True)
class Space(ABC):
    """States with levels in [lowest, highest], vectors `[component]`, that do not exceed the budget."""

    lowest: Counts
    highest: Counts

    @abstractmethod
    def plan(self, state: State) -> dict[str, Treatment]:
        """Every component treated at its level."""

    @abstractmethod
    def uniform(self, rng: np.random.Generator) -> State:
        """The state that the search starts from."""

    @abstractmethod
    def switch(self, state: State, flips: int, rng: np.random.Generator) -> State | None:
        """The state after `flips` random flips; None if they fail."""

    def breed(self, parent: State, count: int, rng: np.random.Generator) -> list[State]:
        """At most `count` different offspring, none equal to the parent; fewer if DRAWS for each do not find more.

        The number of flips is the smaller of two draws from 1, 2, 3.
        """
        found: dict[State, None] = {}
        for _ in range(DRAWS * count):
            child = self.switch(parent, int(rng.integers(1, 4, 2).min()), rng)
            if child is not None and child != parent:
                found[child] = None
            if len(found) == count:
                break
        return list(found)


def draw(where: NDArray[np.bool_], rng: np.random.Generator) -> int | None:
    """A random index at which `where` is true; None if there is none."""
    places = np.flatnonzero(where)
    return int(rng.choice(places)) if len(places) else None


def add_uniformly(span: Span, current: Vector, target: float) -> Vector:
    """Amounts `[component]` of mean `target`: the same x is added to all current amounts, within their bounds.

    amount_c = clip(current_c + x, floor_c, high_c),  floor = max(current, low)
    """
    floor = np.maximum(current, span.low)
    if span.mean(floor) >= target:
        return floor
    bounds = np.stack([floor, np.maximum(floor, span.high)], axis=1)
    return water_filling.fill(bounds, current[:, None] - bounds, span.parameters, target)


@dataclass(frozen=True)
class Steps(Space):
    """A range of amounts: amount_c = start_c + level_c · step / parameters_c. Levels sum to 0, which keeps the mean.

    A flip lowers one level by 1 and raises another by 1. Each is a change of `step` weights, whatever the sizes.
    """

    span: Span
    start: Vector
    step: int

    def plan(self, state: State) -> dict[str, Treatment]:
        return self.span.plan(self.start + np.array(state) * (self.step / self.span.parameters))

    def uniform(self, rng: np.random.Generator) -> State:
        return (0,) * len(self.start)

    def switch(self, state: State, flips: int, rng: np.random.Generator) -> State | None:
        levels = np.array(state, dtype=np.int64)
        for _ in range(flips):
            down, up = draw(levels > self.lowest, rng), draw(levels < self.highest, rng)
            if down is None or up is None:
                return None
            levels[down] -= 1
            levels[up] += 1
        return tuple(levels.tolist())


def make_steps(span: Span, current: Vector, target: float, share: float) -> Steps:
    """Steps around the uniform allocation whose amounts are offered and not below the current ones.

    step = share · min(mean(start) − mean(floor), mean(high) − mean(start)) · median_c parameters_c  weights

    In a Llama layer the median matrix has hidden size squared weights.
    """
    start, floor = add_uniformly(span, current, target), np.maximum(current, span.low)
    ceiling = np.maximum(floor, span.high)
    room = min(span.mean(start) - span.mean(floor), span.mean(ceiling) - span.mean(start))
    step = max(1, round(share * room * float(np.median(span.parameters))))
    below, above = ((way * span.parameters / step + Offer.TOLERANCE) for way in (start - floor, ceiling - start))
    return Steps(-np.floor(below).astype(np.int64), np.floor(above).astype(np.int64), span, start, step)
