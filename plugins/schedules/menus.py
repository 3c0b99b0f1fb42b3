"""Budgets of several compressors, or of fixed levels: one option for each matrix, chosen by the knapsack."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Estimate, Problem
from compressor.values import Component, Plan, Treatment

from .amounts import LEVELS, OFFSETS, TRUST
from .knapsack import Menu, choose

Array = NDArray[np.float64]
Option = Treatment | None
Choices = Mapping[str, Sequence[Option]]
"""Component -> its options, larger amounts last; None leaves it as it was at the start of the round."""
Values = Mapping[str, Array]
"""Component -> a value of each option."""


@dataclass(frozen=True)
class Menus:
    """The options of all compressors; `floor` is the amount that earlier rounds took from each component."""

    problem: Problem
    floor: Mapping[str, float]

    def begin(self) -> Choices:
        """Every fixed option, and levels of every range."""
        return {c.name: self._list(c, LEVELS.tolist()) for c in self.problem.components}

    def near(self, plan: Plan) -> Choices:
        """The next fixed option on each side of a plan's, and the amounts of ranges in between and around it."""
        return {c.name: self._list_near(c, plan.get(c.name)) for c in self.problem.components}

    def sizes(self, choices: Choices) -> Values:
        """What each option leaves: parameters · (1 − amount)."""
        parameters = {c.name: c.parameters for c in self.problem.components}
        return {
            name: parameters[name] * (1 - np.array([self._amount(name, option) for option in options]))
            for name, options in choices.items()
        }

    def costs(self, estimates: Mapping[str, Estimate]) -> Values:
        """What each option changes, as a mean over sequences."""
        return {name: estimate.changes.mean(axis=0) for name, estimate in estimates.items()}

    def solve(self, choices: Choices, sizes: Values, costs: Values, limit: float, plan: Plan, share: float) -> Plan:
        """The cheapest plan whose sizes fit, or the smallest.

        With a `share` below 1 only that share of the changes to `plan` is made, the dearest and the most useful ones.
        Components without costs stay as they are.
        """
        found = self._choose(choices, sizes, costs, limit, plan, frozenset(costs))
        if not plan or share == 1:
            return found
        weights = {name: self._weigh(choices[name], costs[name], found.get(name)) for name in costs}
        moved = sorted((name for name in costs if found.get(name) != plan.get(name)), key=lambda name: -weights[name])
        return self._choose(choices, sizes, costs, limit, plan, moved[: math.ceil(share * len(moved))])

    def _choose(
        self, choices: Choices, sizes: Values, costs: Values, limit: float, plan: Plan, free: Collection[str]
    ) -> Plan:
        """The knapsack over the components that are `free` to leave the plan."""
        menus, kept = {}, {}
        for name, options in choices.items():
            now = plan.get(name)
            kept[name] = list(options) if name in free else [now]
            places = [options.index(option) for option in kept[name]]
            cost = costs[name][places] if name in costs else np.zeros(1)
            lines = tuple(self._line(name, option) for option in kept[name])
            menus[name] = Menu(sizes[name][places], cost, lines)
        shares = choose(list(menus.values()), limit)
        chosen = {name: self._mix(kept[name], share) for name, share in zip(menus, shares, strict=True)}
        return {name: option for name, option in chosen.items() if option is not None}

    def _mix(self, options: Sequence[Option], shares: Array) -> Option:
        """The option that has the share, or the amount between those of a line that have it together."""
        taken = [(option, share) for option, share in zip(options, shares.tolist(), strict=True) if share > 1e-9]
        if len(taken) == 1 or any(option is None for option, _ in taken):
            return max(taken, key=lambda pair: pair[1])[0]
        total = sum(share for _, share in taken)
        amount = sum(option.amount * share for option, share in taken if option) / total
        compressor = next(option.compressor for option, _ in taken if option)
        return Treatment(compressor, min(amount, 1.0))

    def _amount(self, name: str, option: Option) -> float:
        return self.floor[name] if option is None else option.amount

    def _line(self, name: str, option: Option) -> str:
        """The compressor, where amounts around the option's can be had too; else nothing."""
        if option is None or not self.problem.offers[option.compressor][name].is_range:
            return ""
        return option.compressor

    def _weigh(self, options: Sequence[Option], costs: Array, option: Option) -> float:
        """How much a choice matters: its cost or its use."""
        amounts = [option.amount if option else 0.0 for option in options]
        return abs(float(np.interp(option.amount if option else 0.0, amounts, costs)))

    def _list(self, component: Component, amounts: Sequence[float]) -> list[Option]:
        """None, and what every compressor offers above what is taken already: levels, or those of `amounts`."""
        found: list[Treatment] = []
        for compressor, offers in self.problem.offers.items():
            offer = offers[component.name]
            levels = [a for a in amounts if offer.contains(a)] if offer.is_range else offer.levels
            taken = max(self.floor[component.name], 1e-9)
            found += [Treatment(compressor, amount) for amount in levels if amount > taken]
        return [None, *sorted(found, key=lambda treatment: treatment.amount)]

    def _list_near(self, component: Component, now: Option) -> list[Option]:
        """The options of `near` for one component."""
        name, every = component.name, self._list(component, LEVELS.tolist())
        fixed = sorted({self._amount(name, option) for option in every if not self._line(name, option)})
        here = self._amount(name, now)
        low = max((amount for amount in fixed if amount < here - 1e-9), default=here)
        high = min((amount for amount in fixed if amount > here + 1e-9), default=here)
        found = [option for option in every if low - 1e-9 <= self._amount(name, option) <= high + 1e-9]
        if now is not None and self._line(name, now):
            found = [option for option in found if option is None or option.compressor != now.compressor]
            fine = [a for a in (here + TRUST * OFFSETS).tolist() if self.floor[name] < a <= 1]
            found += [
                Treatment(now.compressor, a) for a in fine if self.problem.offers[now.compressor][name].contains(a)
            ]
        if now not in found:
            found.append(now)
        return sorted(found, key=lambda option: self._amount(name, option))
