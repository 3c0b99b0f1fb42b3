"""The choices of a budget: options of each component, their sizes and costs, and the distance between plans."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.contracts import Component, Offer, Plan, Problem, Treatment

from .convex_hull import Array

LEVELS = np.arange(21) / 20
"""Amounts of a range that are tried first."""
OFFSETS = np.array([-1, -1 / 2, -1 / 4, -1 / 8, -1 / 16, 0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
"""Amounts that are tried around a plan, in units of the trust region."""
TRUST = 0.1
"""How far an amount may move in one correction."""
SAME = 1e-9
"""Amounts that differ by less are equal."""
ROUNDING = 1e-12
"""Rounding error, as a share of a component's weights."""

Option = Treatment | None
"""None leaves the component as it is at the start of the round."""
Options = Mapping[str, Sequence[Option]]
"""Component -> its options."""
Values = Mapping[str, Array]
"""Component -> a value of each option, `[unit, option]`; units are its rows, or the whole matrix."""


@dataclass(frozen=True)
class Table:
    """Options, their sizes and their costs. Components whose costs are not known have no entry in `costs`."""

    options: Options
    sizes: Values
    costs: Values


@dataclass(frozen=True)
class Choices(ABC):
    """The choices of a round; `floor` `[unit]` are the amounts of each component after earlier rounds."""

    problem: Problem
    floor: Values

    @abstractmethod
    def begin(self) -> Options:
        """The options of the whole round."""

    @abstractmethod
    def near(self, plan: Plan) -> Options:
        """Options in the trust region around a plan, including those of the plan."""

    @abstractmethod
    def solve(self, table: Table, limit: float, around: Plan | None = None, share: float = 1.0) -> Plan:
        """The cheapest plan whose sizes sum to at most `limit`; the smallest plan if none fits.

        The options are those of `begin`, or those near the plan `around`, within a `share` of the trust region.
        Components without costs keep their option in `around`, or stay as they are at the start of the round.
        """

    @abstractmethod
    def alike(self, table: Table, limit: float) -> Plan:
        """A fitting plan that gives every component with costs the same option; empty if there is none.

        `table` has the options of `begin`. The plan is the cheapest of fixed options, and of a range the smallest
        amount. By the estimates it is never better than that of `solve`, but they may be wrong far from the base.
        """

    def read(self, component: Component, option: Option) -> Array:
        """`[unit]`: the amounts of an option."""
        floor: Array = self.floor[component.name]
        if option is None:
            return floor
        return np.array(option.rows) if option.rows else np.full_like(floor, option.amount)

    def sizes(self, options: Options) -> Values:
        """The size of each option in weights, parameters · (1 − amount)."""
        return {
            c.name: c.parameters
            / len(self.floor[c.name])
            * (1 - np.stack([self.read(c, option) for option in options[c.name]], axis=1))
            for c in self.problem.components
        }

    def distance(self, first: Plan, second: Plan) -> float:
        """Mean over weights of the difference of amounts; 1 for a component with different compressors."""
        apart = [self._separate(c, first.get(c.name), second.get(c.name)) for c in self.problem.components]
        return float(np.average(apart, weights=[component.parameters for component in self.problem.components]))

    def add_singles(self, table: Table, plan: Plan) -> float:
        """The sum of the costs that each treatment of a plan has alone, from `table`.

        Costs between two amounts of a compressor are interpolated. Components without known costs are left out.
        """
        total = 0.0
        for component in self.problem.components:
            chosen = plan.get(component.name)
            if chosen is None or component.name not in table.costs:
                continue
            options = table.options[component.name]
            places = [i for i, option in enumerate(options) if option and option.compressor == chosen.compressor]
            amounts = np.stack([self.read(component, options[place]) for place in places], axis=1)
            costs = table.costs[component.name][:, places]
            total += float(interpolate(amounts, costs, self.read(component, chosen)).sum())
        return total

    def _separate(self, component: Component, first: Option, second: Option) -> float:
        if first and second and first.compressor != second.compressor:
            return 1.0
        return float(np.abs(self.read(component, first) - self.read(component, second)).mean())

    def _fit(self, component: Component, offer: Offer, amounts: Array) -> Array:
        """`amounts` `[unit, …]` rounded up to whole weights and clipped to the offered range, not below the floor."""
        floor = self.floor[component.name].reshape(-1, *[1] * (amounts.ndim - 1))
        weights = component.parameters // len(floor)
        whole = np.ceil(amounts * weights - ROUNDING * weights) / weights
        low = np.maximum(floor, offer.low)
        fitting: Array = np.clip(whole, low, np.maximum(low, offer.high))
        return fitting


def interpolate(amounts: Array, values: Array, wanted: Array) -> Array:
    """`values` `[unit, point]` interpolated at `wanted` `[unit]`; `amounts` `[unit, point]` do not decrease."""
    every, last = np.arange(len(amounts)), amounts.shape[1] - 1
    right = np.clip((amounts < wanted[:, None] - SAME).sum(axis=1), 0, last)
    left = np.maximum(right - 1, 0)
    width = amounts[every, right] - amounts[every, left]
    share = np.divide(wanted - amounts[every, left], width, out=np.ones_like(width), where=width > 0).clip(0, 1)
    found: Array = values[every, left] + share * (values[every, right] - values[every, left])
    return found
