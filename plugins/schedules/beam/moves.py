"""The moves of a beam search: a component that is not treated yet gets one of its options. A plan is a set of moves.

Size bounds say how many bits a plan takes, and the fewest that further moves can reach.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from compressor.contracts import Better, Problem, Treatment
from compressor.errors import ConfigError

from ..targets import check_problem

State = int
"""A plan: bit i is set if move i is in it."""


@dataclass(frozen=True)
class Moves:
    """All moves (component, treatment), in the order of the components and of the configured compressors."""

    every: Sequence[tuple[str, Treatment]]

    @cached_property
    def rivals(self) -> dict[str, State]:
        """Component -> all moves that treat it."""
        found: dict[str, State] = {}
        for index, (name, _) in enumerate(self.every):
            found[name] = found.get(name, 0) | 1 << index
        return found

    @property
    def options(self) -> dict[str, list[Treatment | None]]:
        """Component -> None (unchanged), then each of its treatments."""
        found: dict[str, list[Treatment | None]] = {}
        for name, treatment in self.every:
            found.setdefault(name, [None]).append(treatment)
        return found

    def plan(self, state: State) -> dict[str, Treatment]:
        return {name: treatment for index, (name, treatment) in enumerate(self.every) if state >> index & 1}

    def extend(self, beam: Sequence[State]) -> list[State]:
        """All plans of the beam with one more component treated, in order, without duplicates."""
        found = (
            state | 1 << index
            for state in beam
            for index, (name, _) in enumerate(self.every)
            if not state & self.rivals[name]
        )
        return list(dict.fromkeys(found))

    def bound(self, state: State, known: Mapping[State, float], better: Better) -> float | None:
        """The worst known value of the plans with one move less; None if none is known."""
        values = [known[smaller] for smaller in self._shrink(state) if smaller in known]
        return min(values, key=lambda value: better.sign * value, default=None)

    def _shrink(self, state: State) -> Iterator[State]:
        """All plans with one move less."""
        rest = state
        while rest:
            lowest = rest & -rest
            yield state ^ lowest
            rest ^= lowest


def list_moves(problem: Problem, amount: float | None) -> Moves:
    """Every fixed level, and `amount` for each compressor that offers a range; raises ConfigError if it is wrong."""
    check_problem(problem, "beam")
    found, ranges = [], False
    for component in problem.components:
        for compressor, offers in problem.offers.items():
            offer, amounts = offers[component.name], sorted(offers[component.name].levels)
            if offer.is_range:
                ranges = True
                if amount is None:
                    raise ConfigError(
                        f"`schedule.amount` must be given, {compressor} offers {offer}; give the amount of a component"
                    )
                if not offer.contains(amount):
                    raise ConfigError(
                        f"`schedule.amount` is {amount:g}, {compressor} offers {offer} for `{component.name}`; "
                        "give one of these"
                    )
                amounts = [amount]
            found += [(component.name, Treatment(compressor, level)) for level in amounts]
    if amount is not None and not ranges:
        names = ", ".join(problem.offers)
        raise ConfigError(
            f"`schedule.amount` is for compressors that offer a range, got {amount:g} for {names}; leave it out"
        )
    return Moves(tuple(found))


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
