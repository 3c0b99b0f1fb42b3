"""The multiple-choice knapsack as a mixed integer program, solved by HiGHS."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .convex_hull import Array, Indices

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SECONDS = 60.0
"""Time limit of the solver; its best solution by then is used."""
DUST = 1e-9
"""Shares below it are rounding errors or within the solver's tolerance."""


@dataclass(frozen=True)
class Menu:
    """Options of one component: the size and the cost of each, `[option]`.

    Options of one `line` (a name other than "") are points of a curve; any point between two of them may be chosen.
    """

    sizes: Array
    costs: Array
    lines: tuple[str, ...]


def solve_exactly(menus: Sequence[Menu], limit: float, most: float, least: float) -> list[Array] | None:
    """The best share of every option, `[option]` for each menu; None if the solver finds no solution.

    The optimal cost relative to each menu's cheapest option is at least `least` > 0 and at most `most`. Shares may
    exceed the limit by the solver's tolerance.

    Source: Huangfu and Hall, Parallelizing the dual revised simplex method, 2018 (HiGHS).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = np.concatenate([menu.sizes for menu in menus])
    costs = np.concatenate([menu.costs - menu.costs.min() for menu in menus])
    starts = [0, *itertools.accumulate(len(menu.sizes) for menu in menus)]
    lines = [
        start + np.flatnonzero(np.array(menu.lines) == line)
        for menu, start in zip(menus, starts, strict=False)
        for line in dict.fromkeys(menu.lines)
        if line
    ]
    on_line = np.isin(np.arange(len(sizes)), [option for line in lines for option in line])
    unit = float(sizes.max()) or 1.0
    sums = [*np.ones(len(menus)), *np.zeros(len(lines))]
    matrix = _make_matrix(sizes / unit, starts, lines)
    # The variables are the options and a switch for each line, which is 1 if the line is used. Costs are in units of
    # `least`, so that the solver's absolute tolerances are small relative to the optimum.
    with silent_output():
        result = milp(
            np.concatenate([costs / least, np.zeros(len(lines))]),
            integrality=np.concatenate([~on_line, np.ones(len(lines))]),
            bounds=Bounds(0, np.concatenate([on_line | (costs <= most * (1 + DUST)), np.ones(len(lines))])),
            constraints=LinearConstraint(matrix, [-np.inf, *sums], [limit / unit, *sums]),
            options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
        )
    if result.x is None:
        return None
    bounds = itertools.pairwise(starts)
    return [_clean(menu, result.x[start:stop]) for menu, (start, stop) in zip(menus, bounds, strict=True)]


@contextmanager
def silent_output() -> Iterator[None]:
    """Discards standard output inside: HiGHS sometimes prints there, whatever its options are."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _make_matrix(sizes: Array, starts: Sequence[int], lines: Sequence[Indices]) -> "csr_array":
    """`[constraint, option and switch]`: the budget; Σ x = 1 in each menu; the options of a line sum to its switch."""
    from scipy.sparse import csr_array

    menus, options = len(starts) - 1, np.arange(len(sizes))
    switches = len(sizes) + np.arange(len(lines))
    first = 1 + menus
    rows = [0 * options, 1 + np.repeat(np.arange(menus), np.diff(starts)), first + np.arange(len(lines))]
    columns, values = [options, options, switches], [sizes, np.ones(len(sizes)), -np.ones(len(lines))]
    for index, line in enumerate(lines):
        rows.append(np.full(len(line), first + index))
        columns.append(line)
        values.append(np.ones(len(line)))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csr_array(entries, shape=(first + len(lines), len(sizes) + len(lines)))


def _clean(menu: Menu, shares: Array) -> Array:
    """The shares `[option]` with 0 for all options except the chosen option or line, without the solver's tolerance."""
    owners = np.array([line or f"option {index}" for index, line in enumerate(menu.lines)])
    taken = max(dict.fromkeys(owners), key=lambda owner: float(shares[owners == owner].sum()))
    kept = np.where((owners == taken) & (shares > DUST), shares, 0.0)
    whole: Array = kept / kept.sum()
    return whole
