"""The best choice of one option for each component under a budget: a multiple-choice knapsack, solved by HiGHS."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SECONDS = 60.0
"""The solver may think so long; what it has by then is used."""


@dataclass(frozen=True)
class Menu:
    """Options of one component: what each costs and stores, `[option]`.

    Options of one `line` (a name other than "") lie on a curve, along which any point between two may be taken.
    """

    sizes: Array
    costs: Array
    lines: tuple[str, ...]


def choose(menus: Sequence[Menu], limit: float) -> list[Array]:
    """For each menu the share of every option, `[option]`; where nothing fits, the smallest options.

    minimise Σ cost · x  subject to  Σ size · x ≤ limit, each menu's x adding up to 1; x is 0 or 1 but along a line,
    where it is on one line or not at all. Costs are taken to be convex along a line, as their hull is.

    Source: Sinha and Zoltners, The multiple-choice knapsack problem, Operations Research 1979; Huangfu and Hall,
    Parallelizing the dual revised simplex method, 2018 (HiGHS).
    """
    excess = 0.0
    while sum(float(menu.sizes.min()) for menu in menus) <= limit:
        shares = _solve(menus, limit - 2 * excess)
        if shares is None:
            break
        # The solver keeps the limit up to a tolerance of its own; a budget has none.
        over = sum(float(menu.sizes @ share) for menu, share in zip(menus, shares, strict=True)) - limit
        if over <= 0:
            return shares
        excess = max(2 * excess, over)
    return [np.eye(len(menu.sizes))[np.argmin(menu.sizes)] for menu in menus]


def _solve(menus: Sequence[Menu], limit: float) -> list[Array] | None:
    """One run of the solver; None where it finds nothing."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    sizes, costs = (np.concatenate([getattr(menu, name) for menu in menus]) for name in ("sizes", "costs"))
    size_unit, cost_unit = float(sizes.max()) or 1.0, float(np.abs(costs).max()) or 1.0
    starts = np.cumsum([0, *(len(menu.sizes) for menu in menus)])
    lines = [
        [int(starts[index]) + place for place, other in enumerate(menu.lines) if other == line]
        for index, menu in enumerate(menus)
        for line in dict.fromkeys(menu.lines)
        if line
    ]
    count, total = int(starts[-1]), int(starts[-1]) + len(lines)
    on_line = np.zeros(count, dtype=bool)
    on_line[[option for line in lines for option in line]] = True
    # Rows: the budget; one option from each menu; a line's options add up to its own 0 or 1.
    entries = [(0, option, size / size_unit) for option, size in enumerate(sizes)]
    entries += [(1 + index, option, 1.0) for index in range(len(menus)) for option in range(*starts[index : index + 2])]
    for index, line in enumerate(lines):
        row = 1 + len(menus) + index
        entries += [*((row, option, 1.0) for option in line), (row, count + index, -1.0)]
    rows, columns, values = zip(*entries, strict=True)
    height = 1 + len(menus) + len(lines)
    exact = [*np.ones(len(menus)), *np.zeros(len(lines))]
    constraint = LinearConstraint(
        coo_array((values, (rows, columns)), shape=(height, total)).tocsr(),
        [-np.inf, *exact],
        [limit / size_unit, *exact],
    )
    result = milp(
        np.concatenate([costs / cost_unit, np.zeros(len(lines))]),
        integrality=np.concatenate([~on_line, np.ones(len(lines))]),
        bounds=Bounds(0, 1),
        constraints=constraint,
        options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
    )
    if result.x is None:
        return None
    shares = np.where(on_line, result.x[:count], np.round(result.x[:count]))
    return [shares[start:stop] for start, stop in itertools.pairwise(starts)]
