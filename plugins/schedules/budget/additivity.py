"""The sum of the costs of single treatments, which is compared with the cost of the whole plan."""

import numpy as np

from compressor.contracts import Component, Plan

from .convex_hull import Array
from .options import Choices, Table

ROUNDING = 1e-9
"""Amounts that differ by less are equal."""


def add_singles(choices: Choices, table: Table, plan: Plan) -> float:
    """The sum of the costs that each treatment of a plan has alone, from `table`.

    Costs between two amounts of a compressor are interpolated. Components without known costs are left out.
    """
    known = (component for component in choices.problem.components if component.name in table.costs)
    return sum(_read_cost(choices, table, component, plan) for component in known)


def _read_cost(choices: Choices, table: Table, component: Component, plan: Plan) -> float:
    """The cost of the treatment of one component, summed over its units; 0 if the plan does not treat it."""
    chosen = plan.get(component.name)
    if chosen is None:
        return 0.0
    options = table.options[component.name]
    places = [i for i, option in enumerate(options) if option is not None and option.compressor == chosen.compressor]
    amounts = np.stack([choices.read(component, options[place]) for place in places], axis=1)
    return float(interpolate(amounts, table.costs[component.name][:, places], choices.read(component, chosen)).sum())


def interpolate(amounts: Array, values: Array, wanted: Array) -> Array:
    """`values` `[unit, point]` interpolated at `wanted` `[unit]`; `amounts` `[unit, point]` do not decrease."""
    every, last = np.arange(len(amounts)), amounts.shape[1] - 1
    right = np.clip((amounts < wanted[:, None] - ROUNDING).sum(axis=1), 0, last)
    left = np.maximum(right - 1, 0)
    width = amounts[every, right] - amounts[every, left]
    share = np.divide(wanted - amounts[every, left], width, out=np.ones_like(width), where=width > 0).clip(0, 1)
    found: Array = values[every, left] + share * (values[every, right] - values[every, left])
    return found
