"""Choices of several compressors, or of fixed levels: one option for each matrix, by a multiple-choice knapsack."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.contracts import Component, Plan, Problem, Treatment

from .continuous import ContinuousChoices
from .convex_hull import Array
from .knapsack import choose
from .mixed_integer import Menu
from .options import LEVELS, OFFSETS, SAME, TRUST, Choices, Option, Options, Table, Values


@dataclass(frozen=True)
class DiscreteChoices(Choices):
    """The options of all compressors and None, by increasing amount."""

    def begin(self) -> Options:
        """All fixed options, and levels over every range."""
        return {c.name: self._sort(c, self._list(c)) for c in self.problem.components}

    def near(self, plan: Plan) -> Options:
        """The next fixed option above and below that of the plan, and amounts of ranges between and around them."""
        return {c.name: self._sort(c, self._list_near(c, plan.get(c.name))) for c in self.problem.components}

    def solve(self, table: Table, limit: float, around: Plan | None = None, share: float = 1.0) -> Plan:
        """See `Choices.solve`. With `share` < 1, only that share of the changes to `around` is made, largest first."""
        kept = around or {}
        plan, costs = self._choose(table, limit, kept, table.costs.keys())
        if around is None or share == 1:
            return plan
        moved = [name for name in costs if plan.get(name) != kept.get(name)]
        moved.sort(key=lambda name: -abs(costs[name]))
        return self._choose(table, limit, kept, moved[: math.ceil(share * len(moved))])[0]

    def alike(self, table: Table, limit: float) -> Plan:
        plans: dict[tuple[str, float], dict[str, Treatment]] = {}
        sizes, costs = defaultdict[tuple[str, float], float](float), defaultdict[tuple[str, float], float](float)
        for c in self.problem.components:
            size = table.sizes[c.name][0]
            if c.name not in table.costs:
                limit -= float(size[table.options[c.name].index(None)])
                continue
            for place, option in enumerate(table.options[c.name]):
                if option is not None and not self._line(c, option):
                    key = option.compressor, option.amount
                    plans.setdefault(key, {})[c.name] = option
                    sizes[key] += float(size[place])
                    costs[key] += float(table.costs[c.name][0, place])
        fitting = [key for key, plan in plans.items() if len(plan) == len(table.costs) and sizes[key] <= limit]
        return plans[min(fitting, key=costs.__getitem__)] if fitting else {}

    def _choose(self, table: Table, limit: float, kept: Plan, free: Collection[str]) -> tuple[Plan, dict[str, float]]:
        """The best plan that changes `kept` only for the components in `free`, and its cost by component."""
        menus, options, plan, costs = [], [], {}, {}
        for c in self.problem.components:
            listed = table.options[c.name]
            places = range(len(listed)) if c.name in free else [listed.index(kept.get(c.name))]
            options.append([listed[place] for place in places])
            cost = table.costs[c.name][0, places] if c.name in table.costs else np.zeros(1)
            menus.append(Menu(table.sizes[c.name][0, places], cost, tuple(self._line(c, o) for o in options[-1])))
        shares = choose(menus, limit)
        for c, listed, menu, share in zip(self.problem.components, options, menus, shares, strict=True):
            costs[c.name] = float(menu.costs @ share)
            if (option := self._mix(c, listed, share)) is not None:
                plan[c.name] = option
        return plan, costs

    def _mix(self, component: Component, options: Sequence[Option], shares: Array) -> Option:
        """The option with the largest share; on a line, the amount averaged by the shares."""
        first = options[int(shares.argmax())]
        if first is None or not self._line(component, first):
            return first
        amount = sum(option.amount * share for option, share in zip(options, shares.tolist(), strict=True) if option)
        found = self._reach(component, first.compressor, [amount])[0]
        return None if found.amount <= self._amount(component, None) + SAME else found

    def _amount(self, component: Component, option: Option) -> float:
        return float(self.read(component, option)[0])

    def _line(self, component: Component, option: Option) -> str:
        """The option's compressor if it offers a range; else an empty string."""
        if option is None or not self.problem.offers[option.compressor][component.name].is_range:
            return ""
        return option.compressor

    def _reach(self, component: Component, compressor: str, amounts: Sequence[float]) -> list[Treatment]:
        """Treatments by a compressor that offers a range, at `amounts` or the nearest that are offered."""
        offer = self.problem.offers[compressor][component.name]
        fitting = self._fit(component, offer, np.array([amounts], dtype=np.float64))[0]
        return [Treatment(compressor, amount) for amount in dict.fromkeys(fitting.tolist())]

    def _sort(self, component: Component, options: Sequence[Option]) -> list[Option]:
        return sorted(options, key=lambda option: self._amount(component, option))

    def _list(self, component: Component) -> list[Option]:
        """None, the fixed levels of all compressors above the current amount, and levels over every range."""
        found, taken = list[Option]([None]), self._amount(component, None)
        for compressor, offers in self.problem.offers.items():
            offer = offers[component.name]
            if not offer.is_range:
                found += [Treatment(compressor, amount) for amount in offer.levels if amount > taken + SAME]
            elif offer.high >= taken:
                found += self._reach(component, compressor, LEVELS.tolist())
        return found

    def _list_near(self, component: Component, now: Option) -> list[Option]:
        """The options of `near` for one component whose current option is `now`."""
        every, here = self._list(component), self._amount(component, now)
        fixed = [self._amount(component, option) for option in every if not self._line(component, option)]
        low = max((amount for amount in fixed if amount < here - SAME), default=here - TRUST)
        high = min((amount for amount in fixed if amount > here + SAME), default=here + TRUST)
        found = [option for option in every if low - SAME <= self._amount(component, option) <= high + SAME]
        if now is not None and self._line(component, now):
            found = [option for option in found if option is None or option.compressor != now.compressor]
            found += self._reach(component, now.compressor, (here + TRUST * OFFSETS).tolist())
        return found if now in found else [*found, now]


def make_choices(problem: Problem, floor: Values, by_row: bool) -> Choices:
    """Continuous choices if the only compressor offers ranges for all components, else discrete choices."""
    if len(problem.offers) == 1:
        (compressor,) = problem.offers
        if all(offer.is_range for offer in problem.offers[compressor].values()):
            return ContinuousChoices(problem, floor, compressor, by_row)
    return DiscreteChoices(problem, floor)
