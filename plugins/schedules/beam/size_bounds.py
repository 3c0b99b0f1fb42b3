"""What the plans of a beam store, and the least that they can come to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.contracts import Problem
from compressor.errors import ConfigError

from .moves import Moves, State


@dataclass(frozen=True)
class SizeBounds:
    """Packed bits of all components as they are, and by how much each move changes them; `limit` is per weight.

    `least` are the bits where every component takes its smallest option, and `losses` by how much each move misses it.
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
        """Is a plan within the limit, or can further moves bring it there?"""
        return (self.least + add_moves(state, self.losses)) / self.parameters <= self.limit


def add_moves(state: State, values: Sequence[int]) -> int:
    """The sum over the moves of a plan."""
    return sum(value for index, value in enumerate(values) if state >> index & 1)


def measure_size_bounds(problem: Problem, moves: Moves, sizes: Mapping[str, Sequence[int]], limit: float) -> SizeBounds:
    """From the bits of `moves.options`; raises ConfigError where no plan takes as little as `limit` per weight."""
    parameters = sum(component.parameters for component in problem.components)
    least = sum(min(bits) for bits in sizes.values())
    if least / parameters > limit:
        raise ConfigError(
            f"`schedule.bits` asks for {limit:g} per weight, {', '.join(problem.offers)} stores at least "
            f"{math.ceil(least / parameters * 1e4) / 1e4:g}, scales counted; ask for more"
        )
    changes = [option - sizes[name][0] for name in moves.options for option in sizes[name][1:]]
    losses = [option - min(sizes[name]) for name in moves.options for option in sizes[name][1:]]
    return SizeBounds(sum(bits[0] for bits in sizes.values()), changes, least, losses, parameters, limit)
