"""The search space of fixed levels within a budget of packed bits, and the levels in the order of their bits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.contracts import Offer, Problem, Treatment
from compressor.errors import ConfigError

from ..targets import Span, Vector, make_span
from .mutations import Counts, Space, State, add_uniformly, draw

Options = Mapping[str, Sequence[Treatment]]
MOST_CHANGES = 10
LEAST_RETURN = 0.8


def list_levels(problem: Problem) -> dict[str, list[Treatment]]:
    """All levels of all compressors for each component; empty if a compressor offers a range."""
    if any(offer.is_range for offers in problem.offers.values() for offer in offers.values()):
        return {}
    return {
        component.name: [
            Treatment(compressor, level)
            for compressor, offers in problem.offers.items()
            for level in sorted(offers[component.name].levels)
        ]
        for component in (problem.components if problem.offers else ())
    }


def span_options(problem: Problem, options: Options) -> Span:
    """The smallest and the largest amount of the options of each component."""
    amounts = [[treatment.amount for treatment in options[component.name]] for component in problem.components]
    return make_span(", ".join(problem.offers), problem, [(min(row), max(row)) for row in amounts])


@dataclass(frozen=True)
class Ladder:
    """The options of each component from the largest to the smallest, and their packed bits `[component, level]`.

    Shorter rows of `bits` are padded with their last value.
    """

    names: tuple[str, ...]
    options: tuple[tuple[Treatment, ...], ...]
    bits: Counts

    @property
    def tops(self) -> Counts:
        return np.array([len(row) - 1 for row in self.options], dtype=np.int64)

    def interpolate(self, amounts: Vector) -> int:
        """Bits of all components at `amounts` `[component]`, by linear interpolation between levels."""
        rows = zip(amounts, self.options, self.bits, strict=True)
        exact = sum(float(np.interp(a, [t.amount for t in row], bits[: len(row)])) for a, row, bits in rows)
        return int(exact * (1 + 1e-12) + Offer.TOLERANCE)

    def floor(self, current: Vector) -> Counts:
        """The first level of each component with an amount of at least `current` `[component]`."""
        rows = zip(current - Offer.TOLERANCE, self.options, strict=True)
        return np.array([sum(t.amount < amount for t in row) for amount, row in rows], dtype=np.int64)


def make_ladder(options: Options, sizes: Mapping[str, Sequence[int]]) -> Ladder:
    """Order the options by size. An option is left out if one of at least its size has a larger amount."""
    rows: list[list[tuple[int, Treatment]]] = []
    for name, choices in options.items():
        rows.append([])
        for bits, choice in sorted(zip(sizes[name], choices, strict=True), key=lambda pair: -pair[0]):
            if not rows[-1] or choice.amount >= rows[-1][-1][1].amount:
                rows[-1].append((bits, choice))
    width = max(map(len, rows))
    table = [[bits for bits, _ in row] + [row[-1][0]] * (width - len(row)) for row in rows]
    return Ladder(tuple(options), tuple(tuple(t for _, t in row) for row in rows), np.array(table, dtype=np.int64))


@dataclass(frozen=True)
class FixedLevels(Space):
    """States of at most `budget` packed bits.

    A switch lowers random levels, then raises random levels until the state is within the budget. It fails after more
    than MOST_CHANGES changes, or if the added bits are less than LEAST_RETURN of the removed bits.
    """

    ladder: Ladder
    budget: int

    def plan(self, state: State) -> dict[str, Treatment]:
        rows = zip(self.ladder.names, self.ladder.options, state, strict=True)
        return {name: row[level] for name, row, level in rows}

    def cost(self, levels: Counts) -> Counts:
        """Bits of every component."""
        found: Counts = np.take_along_axis(self.ladder.bits, levels[:, None], axis=1)[:, 0]
        return found

    def uniform(self, rng: np.random.Generator) -> State:
        """The lowest common level that fits the budget, then random components one level lower while that fits."""
        common = range(int(self.highest.max()) + 1)
        states = (np.clip(level, self.lowest, self.highest) for level in common)
        levels = next(found for found in states if self.cost(found).sum() <= self.budget)
        while True:
            lower = np.maximum(levels - 1, self.lowest)
            more = self.cost(lower) - self.cost(levels)
            place = draw((lower < levels) & (more <= self.budget - self.cost(levels).sum()), rng)
            if place is None:
                return tuple(levels.tolist())
            levels[place] -= 1

    def switch(self, state: State, flips: int, rng: np.random.Generator) -> State | None:
        levels, given, taken = np.array(state, dtype=np.int64), 0, 0
        changes, spent = 0, int(self.cost(levels).sum())
        while changes < flips or spent > self.budget:
            step = -1 if changes < flips else 1
            place = draw(levels > self.lowest if step < 0 else levels < self.highest, rng)
            if place is None or changes == MOST_CHANGES:
                return None
            before, levels[place] = self.ladder.bits[place, levels[place]], levels[place] + step
            more = int(self.ladder.bits[place, levels[place]] - before)
            spent, changes = spent + more, changes + 1
            given, taken = given + max(more, 0), taken + max(-more, 0)
        return tuple(levels.tolist()) if given >= LEAST_RETURN * taken else None


def make_levels(ladder: Ladder, span: Span, current: Vector, target: float | None, bits: float | None) -> FixedLevels:
    """Levels with amounts of at least `current` `[component]`, within the bits of the uniform allocation at `target`.

    Without a target the budget is `bits` per weight; raises ConfigError if it is out of reach.
    """
    highest = ladder.tops
    lowest = np.minimum(ladder.floor(current), highest)
    if target is not None:
        budget = ladder.interpolate(add_uniformly(span, current, target))
        return FixedLevels(lowest, highest, ladder, budget)
    space = FixedLevels(lowest, highest, ladder, math.floor((bits or 0.0) * span.parameters.sum() + Offer.TOLERANCE))
    least = int(space.cost(highest).sum())
    if least > space.budget:
        nearest = math.ceil(least / span.parameters.sum() * 1e4) / 1e4
        raise ConfigError(
            f"`schedule.bits` is {bits:g} per weight, {span.compressor} stores at least {nearest:g}, scales "
            "counted; give that or more"
        )
    return space
