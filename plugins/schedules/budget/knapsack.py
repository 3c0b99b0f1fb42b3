"""The best choice of one option for each component within a budget: a multiple-choice knapsack."""

from collections.abc import Sequence

import numpy as np

from .convex_hull import Array, Curves, find_cheapest, take_steps
from .mixed_integer import Menu, solve_exactly

ATTEMPTS = 6
"""How often the solver is run, each time with a tighter limit, until its solution keeps the true limit."""


def choose(menus: Sequence[Menu], limit: float) -> list[Array]:
    """For each menu the share x of every option, `[option]`; the smallest options if nothing fits.

    minimise Σ cost · x  subject to  Σ size · x ≤ limit  and  Σ x = 1 in each menu. x is 0 or 1, except that the options
    of one line may share. Costs are assumed to be convex along a line.

    Source: Sinha and Zoltners, The multiple-choice knapsack problem, Operations Research 1979.
    """
    greedy, cost, bound = choose_greedily(menus, limit)
    tightened = limit
    for _ in range(ATTEMPTS if cost > bound else 0):
        shares = solve_exactly(menus, tightened, cost, bound)
        if shares is None:
            break
        # The solver keeps the limit only up to its own tolerance; a budget has no tolerance.
        over = _add_up(menus, shares, "sizes") - limit
        if over <= 0:
            return min(shares, greedy, key=lambda found: _add_up(menus, found, "costs"))
        tightened -= 2 * over + 1e-12 * abs(limit)
    return greedy


def choose_greedily(menus: Sequence[Menu], limit: float) -> tuple[list[Array], float, float]:
    """Shares by one common slope with the last step taken whole, their cost, and a lower bound of every fitting choice.

    Costs are relative to each menu's cheapest option. If nothing fits: the smallest options, and the bound is the cost.
    """
    width = max(len(menu.sizes) for menu in menus)
    # By decreasing size; of equal sizes the cheapest is last. The last option pads to the width of the widest menu.
    orders = [np.lexsort((-menu.costs, -menu.sizes)) for menu in menus]
    options = np.stack([np.pad(order, (0, width - len(order)), mode="edge") for order in orders])
    sizes, costs = (
        np.stack([getattr(menu, name)[order] for menu, order in zip(menus, options, strict=True)])
        for name in ("sizes", "costs")
    )
    costs = costs - costs.min(axis=1, keepdims=True)
    every = np.arange(len(menus))
    curves = Curves(options.astype(np.float64), sizes, costs)
    places, partial = take_steps(curves, limit, find_cheapest(curves))
    cost = bound = float(costs[every, places].sum())
    if partial is not None:
        step = float(costs[partial.unit, partial.right] - costs[partial.unit, partial.left])
        cost, bound = cost + step, bound + partial.share * step
        places[partial.unit] = partial.right
    chosen = options[every, places]
    return [np.eye(len(menu.sizes))[option] for menu, option in zip(menus, chosen, strict=True)], cost, bound


def _add_up(menus: Sequence[Menu], shares: Sequence[Array], values: str) -> float:
    """The sum of `sizes` or `costs` over menus."""
    return sum(float(getattr(menu, values) @ share) for menu, share in zip(menus, shares, strict=True))
