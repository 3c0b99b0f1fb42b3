"""Do effects add up? What the treatments of a plan cost each alone, to compare with what they cost together."""

import numpy as np

from compressor.contracts import Component, Plan

from .convex_hull import Array
from .options import Choices, Table

ROUNDING = 1e-9
"""Amounts so close are one."""


def add_singles(choices: Choices, table: Table, plan: Plan) -> float:
    """The sum of what `table` says that each treatment of a plan costs alone.

    Between two amounts of one compressor a cost is read off a straight line; components without costs have none.
    """
    known = (component for component in choices.problem.components if component.name in table.costs)
    return sum(_read_cost(choices, table, component, plan) for component in known)


def _read_cost(choices: Choices, table: Table, component: Component, plan: Plan) -> float:
    """The cost of what a plan does to one component, all its units together; nothing where it leaves it alone."""
    chosen = plan.get(component.name)
    if chosen is None:
        return 0.0
    options = table.options[component.name]
    places = [i for i, option in enumerate(options) if option is not None and option.compressor == chosen.compressor]
    amounts = np.stack([choices.read(component, options[place]) for place in places], axis=1)
    return float(interpolate(amounts, table.costs[component.name][:, places], choices.read(component, chosen)).sum())


def interpolate(amounts: Array, values: Array, wanted: Array) -> Array:
    """`[unit]`: `values` `[unit, point]` at amounts `wanted` `[unit]`; `amounts` `[unit, point]` do not decrease."""
    every, last = np.arange(len(amounts)), amounts.shape[1] - 1
    right = np.clip((amounts < wanted[:, None] - ROUNDING).sum(axis=1), 0, last)
    left = np.maximum(right - 1, 0)
    width = amounts[every, right] - amounts[every, left]
    share = np.divide(wanted - amounts[every, left], width, out=np.ones_like(width), where=width > 0).clip(0, 1)
    found: Array = values[every, left] + share * (values[every, right] - values[every, left])
    return found
