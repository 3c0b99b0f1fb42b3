"""What a budget chooses from: options of each component, what they store and cost, and how far apart plans are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.contracts import Component, Offer, Plan, Problem, Treatment

from .convex_hull import Array

LEVELS = np.arange(21) / 20
"""Amounts of a range that are looked at first."""
OFFSETS = np.array([-1, -1 / 2, -1 / 4, -1 / 8, -1 / 16, 0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
"""Amounts that are looked at around a plan, in units of the trust region."""
TRUST = 0.1
"""How far an amount may move in one correction."""
ROUNDING = 1e-12
"""A share of a component's weights that is no weight."""

Option = Treatment | None
"""None leaves a component as it was at the start of the round."""
Options = Mapping[str, Sequence[Option]]
"""Component -> its options."""
Values = Mapping[str, Array]
"""Component -> a value of each option, `[unit, option]`: the units are its rows, or the matrix."""


@dataclass(frozen=True)
class Table:
    """Options, what each stores and what it costs. Where nothing is known of a component's costs, it has none here."""

    options: Options
    sizes: Values
    costs: Values


@dataclass(frozen=True)
class Choices(ABC):
    """What may be chosen in a round; `floor` `[unit]` are the amounts that earlier rounds took from each component."""

    problem: Problem
    floor: Values

    @abstractmethod
    def begin(self) -> Options:
        """The options of the whole round."""

    @abstractmethod
    def near(self, plan: Plan) -> Options:
        """Options in the trust region of a plan, that of the plan among them."""

    @abstractmethod
    def solve(self, table: Table, limit: float, around: Plan | None = None, share: float = 1.0) -> Plan:
        """The cheapest plan whose sizes add up to no more than `limit`, else the smallest.

        The options are those of `begin`, or near the plan `around`; of that trust region only a `share` is used.
        Components without costs stay as they are, in `around` or at the start of the round.
        """

    def alike(self, table: Table, limit: float) -> Plan:
        """Of the plans that treat every component with costs by the same fixed option, the cheapest that fits.

        Empty where there is none: ranges have none, for amounts that share a slope only gain on equal ones.
        """
        return {}

    def read(self, component: Component, option: Option) -> Array:
        """`[unit]`: the amounts of an option."""
        floor: Array = self.floor[component.name]
        if option is None:
            return floor
        return np.array(option.rows) if option.rows else np.full_like(floor, option.amount)

    def sizes(self, options: Options) -> Values:
        """The weights that each option keeps, parameters · (1 − amount)."""
        return {
            c.name: c.parameters
            / len(self.floor[c.name])
            * (1 - np.stack([self.read(c, option) for option in options[c.name]], axis=1))
            for c in self.problem.components
        }

    def distance(self, first: Plan, second: Plan) -> float:
        """Mean over weights of how far amounts are apart; where the compressor differs, as far as can be."""
        apart = [self._separate(c, first.get(c.name), second.get(c.name)) for c in self.problem.components]
        return float(np.average(apart, weights=[component.parameters for component in self.problem.components]))

    def _separate(self, component: Component, first: Option, second: Option) -> float:
        if first and second and first.compressor != second.compressor:
            return 1.0
        return float(np.abs(self.read(component, first) - self.read(component, second)).mean())

    def _fit(self, component: Component, offer: Offer, amounts: Array) -> Array:
        """`amounts` `[unit, …]` brought into what a range offers: whole weights, what is asked for and never less."""
        floor = self.floor[component.name].reshape(-1, *[1] * (amounts.ndim - 1))
        weights = component.parameters // len(floor)
        whole = np.ceil(amounts * weights - ROUNDING * weights) / weights
        low = np.maximum(floor, offer.low)
        fitting: Array = np.clip(whole, low, np.maximum(low, offer.high))
        return fitting
