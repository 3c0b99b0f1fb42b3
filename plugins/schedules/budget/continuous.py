"""Choices of one compressor that offers ranges: an amount for each matrix or row, at one common slope."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.contracts import Component, Plan, Treatment

from .convex_hull import Array, Curves, share_slope
from .options import LEVELS, OFFSETS, ROUNDING, TRUST, Choices, Options, Table

HERE = int(np.flatnonzero(OFFSETS == 0)[0])
"""The index of the plan's own amount in OFFSETS."""
BISECTIONS = 60
"""Halvings of the interval of amounts; an amount is then as exact as a float64."""


@dataclass(frozen=True)
class ContinuousChoices(Choices):
    """The amounts of one compressor, for each matrix or, with `by_row`, for each row."""

    compressor: str
    by_row: bool = False

    def begin(self) -> Options:
        """Levels over the whole range, not below the current amounts."""
        return {c.name: self._offer(c, LEVELS[None, :]) for c in self.problem.components}

    def near(self, plan: Plan) -> Options:
        """Amounts around those of `plan`."""
        return {
            c.name: self._offer(c, self.read(c, plan.get(c.name))[:, None] + TRUST * OFFSETS)
            for c in self.problem.components
        }

    def solve(self, table: Table, limit: float, around: Plan | None = None, share: float = 1.0) -> Plan:
        kept = around or {}
        stay = 0 if around is None else HERE
        free = [c for c in self.problem.components if c.name in table.costs]
        for c in self.problem.components:
            if c.name not in table.costs:
                limit -= float(table.sizes[c.name][:, stay].sum())
        if not free:
            return kept
        amounts = [np.stack([self.read(c, option) for option in table.options[c.name]], axis=1) for c in free]
        columns = (amounts, [table.sizes[c.name] for c in free], [table.costs[c.name] for c in free])
        used = np.full(amounts[0].shape[1], True) if around is None else np.abs(OFFSETS) <= share
        found = share_slope(Curves(*(np.concatenate(column)[:, used] for column in columns)), limit)
        parts = np.split(found, np.cumsum([len(part) for part in amounts])[:-1])
        return {**kept, **{c.name: self._treat(c, part) for c, part in zip(free, parts, strict=True)}}

    def alike(self, table: Table, limit: float) -> Plan:
        free = [c for c in self.problem.components if c.name in table.costs]
        for c in self.problem.components:
            if c.name not in table.costs:
                limit -= float(table.sizes[c.name][:, 0].sum())
        totals = sum((table.sizes[c.name].sum(axis=0) for c in free), np.zeros(len(LEVELS)))
        if not totals[-1] <= limit < totals[0]:
            return {}
        weights = np.array([c.parameters for c in free])
        means = [
            weights @ [self.read(c, table.options[c.name][level]).mean() for c in free] for level in range(len(LEVELS))
        ]
        level = self._find_level(free, float(np.interp(-limit, -totals, means)))
        return {c.name: self._treat(c, self._spread(c, level)) for c in free}

    def _find_level(self, components: Sequence[Component], wanted: float) -> float:
        """The amount of all `components`, or of those that are not above it already, at which `wanted` weights go."""
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = sum(c.parameters * np.maximum(self.floor[c.name], middle).mean() for c in components)
            low, high = (middle, high) if found < wanted else (low, middle)
        return high

    def _spread(self, component: Component, level: float) -> Array:
        """Amounts `[unit]` of whole weights within one weight of `level`, and with that mean but for one weight."""
        weights = component.parameters // len(self.floor[component.name])
        wanted = np.cumsum(np.maximum(self.floor[component.name], level)) * weights
        counts = np.diff(np.ceil(wanted - ROUNDING * component.parameters), prepend=0.0)
        spread: Array = counts / weights
        return spread

    def _offer(self, component: Component, amounts: Array) -> list[Treatment]:
        """Options at `amounts` `[unit, option]`."""
        units = len(self.floor[component.name])
        return [self._treat(component, column) for column in np.broadcast_to(amounts, (units, amounts.shape[1])).T]

    def _treat(self, component: Component, amounts: Array) -> Treatment:
        """The treatment with `amounts` `[unit]`, or with the nearest amounts that are offered."""
        fitting = self._fit(component, self.problem.offers[self.compressor][component.name], amounts).tolist()
        mean = sum(fitting) / len(fitting)
        return Treatment(self.compressor, mean, rows=tuple(fitting) if self.by_row else None)
