"""Choices of one compressor that offers ranges: an amount for each matrix or row, at one common slope."""

from dataclasses import dataclass

import numpy as np

from compressor.contracts import Component, Plan, Treatment

from .convex_hull import Array, Curves, share_slope
from .options import LEVELS, OFFSETS, TRUST, Choices, Options, Table

HERE = int(np.flatnonzero(OFFSETS == 0)[0])
"""The index of the plan's own amount in OFFSETS."""


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

    def _offer(self, component: Component, amounts: Array) -> list[Treatment]:
        """Options at `amounts` `[unit, option]`."""
        units = len(self.floor[component.name])
        return [self._treat(component, column) for column in np.broadcast_to(amounts, (units, amounts.shape[1])).T]

    def _treat(self, component: Component, amounts: Array) -> Treatment:
        """The treatment with `amounts` `[unit]`, or with the nearest amounts that are offered."""
        fitting = self._fit(component, self.problem.offers[self.compressor][component.name], amounts).tolist()
        mean = sum(fitting) / len(fitting)
        return Treatment(self.compressor, mean, rows=tuple(fitting) if self.by_row else None)
