"""Sizes of the plans of a beam search, and the smallest size that each can still reach."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.contracts import Problem
from compressor.errors import ConfigError

from .moves import Moves, State


@dataclass(frozen=True)
class SizeBounds:
    """Packed bits of all components before treatment, and the change by each move; `limit` is per weight.

    `least` is the total if every component has its smallest option. `losses` are the bits of each move above the
    smallest option of its component.
    """

    untreated: int
    changes: Sequence[int]
    least: int
    losses: Sequence[int]
    parameters: int
    limit: float

    def mean(self, state: State) -> float:
        """Packed bits per weight of a plan."""
        return (self.untreated + add_moves(state, self.changes)) / self.parameters

    def allows(self, state: State) -> bool:
        """Whether a plan is within the limit, or further moves can bring it there."""
        return (self.least + add_moves(state, self.losses)) / self.parameters <= self.limit


def add_moves(state: State, values: Sequence[int]) -> int:
    """The sum of `values` over the moves of a plan."""
    return sum(value for index, value in enumerate(values) if state >> index & 1)


def measure_size_bounds(problem: Problem, moves: Moves, sizes: Mapping[str, Sequence[int]], limit: float) -> SizeBounds:
    """Bounds from the `sizes` of `moves.options`; raises ConfigError if no plan can reach `limit` bits per weight."""
    parameters = sum(component.parameters for component in problem.components)
    least = sum(min(bits) for bits in sizes.values())
    if least / parameters > limit:
        raise ConfigError(
            f"`schedule.bits` is {limit:g} per weight, {', '.join(problem.offers)} stores at least "
            f"{math.ceil(least / parameters * 1e4) / 1e4:g}, scales counted; give that or more"
        )
    changes = [option - sizes[name][0] for name in moves.options for option in sizes[name][1:]]
    losses = [option - min(sizes[name]) for name in moves.options for option in sizes[name][1:]]
    return SizeBounds(sum(bits[0] for bits in sizes.values()), changes, least, losses, parameters, limit)
