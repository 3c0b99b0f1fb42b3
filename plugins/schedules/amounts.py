"""Budgets of one compressor that offers ranges: an amount for each matrix, or for each row, shared by slope."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Estimate, Problem
from compressor.values import Component, Plan, Treatment

from .hulls import Curves, share_slope

LEVELS = np.arange(21) / 20
"""Amounts that are looked at first."""
OFFSETS = np.array([-1, -1 / 2, -1 / 4, -1 / 8, -1 / 16, 0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
"""Amounts that are looked at around a plan, in units of the trust region."""
TRUST = 0.1
"""How far an amount may move in one correction."""

Array = NDArray[np.float64]
Choices = Mapping[str, Sequence[Treatment]]
"""Component -> its options, larger amounts last."""
Values = Mapping[str, Array]
"""Component -> a value of each option, `[unit, option]`: the units are its rows, or the matrix."""


@dataclass(frozen=True)
class Amounts:
    """The amounts of one compressor; `floor` `[unit]` are those that earlier rounds took from each component."""

    problem: Problem
    compressor: str
    by_row: bool
    floor: Values

    def begin(self) -> Choices:
        """Levels of the whole range, from what is taken already."""
        return {c.name: self._offer(c, np.broadcast_to(LEVELS, (self.units(c), len(LEVELS)))) for c in self.components}

    def near(self, plan: Plan) -> Choices:
        """Amounts around those of a plan."""
        return {
            c.name: self._offer(c, self.read(c, plan.get(c.name))[:, None] + TRUST * OFFSETS) for c in self.components
        }

    @property
    def components(self) -> Sequence[Component]:
        return self.problem.components

    def units(self, component: Component) -> int:
        return component.shape[0] if self.by_row else 1

    def read(self, component: Component, option: Treatment | None) -> Array:
        """`[unit]`: the amounts of an option; None is what was taken before."""
        if option is None:
            return self.floor[component.name]
        return np.array(option.rows if self.by_row and option.rows else (option.amount,), dtype=np.float64)

    def sizes(self, choices: Mapping[str, Sequence[Treatment | None]]) -> Values:
        """The weights that each option keeps, parameters · (1 − amount); None keeps what there is."""
        return {
            c.name: c.parameters
            / self.units(c)
            * (1 - np.stack([self.read(c, option) for option in choices[c.name]], 1))
            for c in self.components
        }

    def costs(self, estimates: Mapping[str, Estimate]) -> Values:
        """What each option changes, as a mean over sequences."""
        return {
            name: estimate.changes.mean(axis=0, keepdims=True) if estimate.rows is None else estimate.rows
            for name, estimate in estimates.items()
        }

    def solve(self, choices: Choices, sizes: Values, costs: Values, limit: float, plan: Plan, share: float) -> Plan:
        """The cheapest plan whose sizes fit, or the smallest; amounts stay within `share` of the trust region.

        Components without costs stay as they are.
        """
        chosen = [c for c in self.components if c.name in costs]
        if not chosen:
            return {}
        rest = sum(float(np.max(sizes[c.name], axis=-1).sum()) for c in self.components if c.name not in costs)
        amounts = [np.stack([self.read(c, option) for option in choices[c.name]], axis=1) for c in chosen]
        tables = (amounts, *([np.atleast_2d(values[c.name]) for c in chosen] for values in (sizes, costs)))
        curves = Curves(*(np.concatenate(table) for table in tables))
        if plan:
            inside = np.abs(OFFSETS) <= share
            curves = Curves(curves.amounts[:, inside], curves.sizes[:, inside], curves.costs[:, inside])
        found = share_slope(curves, limit - rest)
        parts = np.split(found, np.cumsum([self.units(c) for c in chosen])[:-1])
        return {c.name: self._treat(c, part) for c, part in zip(chosen, parts, strict=True)}

    def _offer(self, component: Component, amounts: Array) -> list[Treatment]:
        """Options at `amounts` `[unit, option]`, brought into what can be had."""
        return [self._treat(component, column) for column in amounts.T]

    def _treat(self, component: Component, amounts: Array) -> Treatment:
        """`amounts` `[unit]` as a treatment: whole weights, so that what is asked for is what goes, never less."""
        weights = component.parameters // self.units(component)
        offer = self.problem.offers[self.compressor][component.name]
        whole = np.ceil(amounts * weights - 1e-6) / weights
        low = np.maximum(self.floor[component.name], offer.low)
        fitting = np.clip(whole, low, np.maximum(low, offer.high)).tolist()
        mean = sum(fitting) / len(fitting)
        return Treatment(self.compressor, mean, rows=tuple(fitting) if self.by_row else None)
