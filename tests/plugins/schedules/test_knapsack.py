"""One option of each menu under a budget: as brute force has it, and not a bit over."""

import itertools
import os
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor_plugins.schedules.budget import knapsack
from compressor_plugins.schedules.budget.convex_hull import Array
from compressor_plugins.schedules.budget.knapsack import choose, choose_greedily
from compressor_plugins.schedules.budget.mixed_integer import Menu, silent_output, solve_exactly

SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.floats(-0.2, 1.1)


def make_menus(seed: int, scale: int = 1) -> list[Menu]:
    """Up to five menus of up to five options, integer sizes, costs over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, rng.integers(1, 6))
    return [
        Menu(rng.integers(0, 40, n) * scale / 1.0, rng.lognormal(0, 4, n) * rng.choice([1, -0.1]), ("",) * n)
        for n in counts
    ]


def limit_at(menus: Sequence[Menu], share: float) -> float:
    least, most = sum(menu.sizes.min() for menu in menus), sum(menu.sizes.max() for menu in menus)
    return float(np.floor(least + share * (most - least)))


def sum_of(menus: Sequence[Menu], shares: Sequence[Array], values: str) -> float:
    return sum(float(getattr(menu, values) @ share) for menu, share in zip(menus, shares, strict=True))


def search_all(menus: Sequence[Menu], limit: float) -> float | None:
    """The least cost of all choices that fit."""
    found = [
        sum(menu.costs[option] for menu, option in zip(menus, options, strict=True))
        for options in itertools.product(*(range(len(menu.sizes)) for menu in menus))
        if sum(menu.sizes[option] for menu, option in zip(menus, options, strict=True)) <= limit
    ]
    return min(found, default=None)


@settings(deadline=None, max_examples=150)
@given(SEEDS, SHARES, st.sampled_from([1, 1000, 10**7]))
def test_as_brute_force_has_it(seed: int, share: float, scale: int) -> None:
    menus = make_menus(seed, scale)
    limit = limit_at(menus, share)
    shares = choose(menus, limit)
    assert all(sorted(share)[-1] == 1.0 == share.sum() for share in shares)
    best = search_all(menus, limit)
    if best is None:
        assert [float(m.sizes @ x) for m, x in zip(menus, shares, strict=True)] == [m.sizes.min() for m in menus]
        cheapest = [menu.costs[menu.sizes == menu.sizes.min()].min() for menu in menus]
        assert [float(m.costs @ x) for m, x in zip(menus, shares, strict=True)] == cheapest
    else:
        assert sum_of(menus, shares, "sizes") <= limit
        least = sum(float(menu.costs.min()) for menu in menus)  # costs may cancel; what counts is above the cheapest
        assert sum_of(menus, shares, "costs") - least == pytest.approx(best - least, rel=1e-5, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(SEEDS, SHARES)
def test_the_greedy_choice_fits_and_its_bound_holds(seed: int, share: float) -> None:
    menus = make_menus(seed)
    limit = limit_at(menus, share)
    shares, cost, bound = choose_greedily(menus, limit)
    cheapest = sum(float(menu.costs.min()) for menu in menus)
    assert sum_of(menus, shares, "costs") - cheapest == pytest.approx(cost)
    best = search_all(menus, limit)
    if best is not None:
        assert sum_of(menus, shares, "sizes") <= limit
        assert bound - 1e-9 * abs(bound) <= best - cheapest + 1e-9 * abs(cheapest)
        assert best - cheapest <= cost + 1e-9 * (abs(cost) + abs(cheapest))


def test_one_dear_option_does_not_blur_the_rest() -> None:
    """The solver's tolerances are absolute: beside costs of 10⁶ those of 10⁻⁶ must not be taken for nothing."""
    rng = np.random.default_rng(0)
    sizes = np.array([16.0, 8.0, 4.0, 2.0])
    menus = [Menu(sizes, np.array([0, 1e-6, 1e-5, 1e-4]) * rng.lognormal(0, 1), ("",) * 4) for _ in range(20)]
    limit = 20 * 6.0
    alone = sum_of(menus, choose([Menu(m.sizes, 1e6 * m.costs, m.lines) for m in menus], limit), "costs")
    wild = Menu(sizes, np.array([0.0, 1e2, 1e4, 1e6]), ("",) * 4)
    shares = choose([*menus, wild], limit + 16)
    assert shares[-1].tolist() == [1, 0, 0, 0]
    assert sum_of(menus, shares[:-1], "costs") == pytest.approx(alone)


def test_what_the_solver_finds_over_the_limit_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    menus = [Menu(np.array([10.0, 6.0, 3.0]), np.array([0.0, 1.0, 5.0]), ("",) * 3)] * 2
    limits: list[float] = []

    def careless(menus: Sequence[Menu], limit: float, most: float, least: float) -> list[Array] | None:
        limits.append(limit)
        return solve_exactly(menus, limit + 0.5, most, least)

    monkeypatch.setattr(knapsack, "solve_exactly", careless)
    assert sum_of(menus, choose(menus, 11.5), "sizes") <= 11.5
    assert limits == pytest.approx([11.5, 10.5])
    monkeypatch.setattr(knapsack, "solve_exactly", lambda *_: None)
    assert [share.tolist() for share in choose(menus, 11.5)] == [[0, 0, 1], [0, 1, 0]]


def test_a_line_may_be_left_between_two_points_and_a_menu_has_one_line() -> None:
    amounts = np.array([0.0, 0.5, 1.0])
    along = Menu(10 * (1 - amounts), np.array([0.0, 1.0, 4.0]), ("a",) * 3)
    (share,) = choose([along], 7.5)
    assert share == pytest.approx([0.5, 0.5, 0.0])
    apart = Menu(np.array([10.0, 5.0]), np.array([0.0, 1.0]), ("a", "b"))
    assert choose([apart], 7.5)[0].tolist() == [0.0, 1.0]


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.floats(0.05, 0.95))
def test_mixed_menus_against_a_fine_grid(seed: int, share: float) -> None:
    """Two menus of a convex line and fixed options: no point of a grid is better, and what is found is on the hull."""
    rng = np.random.default_rng(seed)
    amounts, fine = np.arange(5) / 4, np.arange(101) / 100
    menus, grids = [], []
    for weights in rng.integers(5, 20, 2).tolist():
        fixed = rng.random(2)
        curve, other = rng.lognormal() * amounts ** rng.uniform(1, 3), rng.lognormal(0, 1, 2) * fixed
        sizes = weights * (1 - np.concatenate([amounts, fixed]))
        menus.append(Menu(sizes, np.concatenate([curve, other]), ("line",) * 5 + ("",) * 2))
        options = [*zip(weights * (1 - fine), np.interp(fine, amounts, curve), strict=True)]
        grids.append([*options, *zip(sizes[5:], other, strict=True)])
    limit = sum(float(menu.sizes.min()) * (1 - share) + float(menu.sizes.max()) * share for menu in menus)
    shares = choose(menus, limit)
    assert sum_of(menus, shares, "sizes") <= limit * (1 + 1e-9)
    for one in shares:
        assert one.sum() == pytest.approx(1) and (one[5:].max() in (0, 1)) and (one >= 0).all()
    best = min(a[1] + b[1] for a, b in itertools.product(*grids) if a[0] + b[0] <= limit)
    assert sum_of(menus, shares, "costs") <= best * (1 + 1e-6)


@pytest.mark.parametrize("line", [False, True])
def test_a_large_model_is_solved_in_time(line: bool) -> None:
    """224 matrices, 24 options each; the bound of the hulls says how good it is."""
    rng, menus = np.random.default_rng(0), []
    for _ in range(224):
        weights, amounts = int(rng.integers(1, 9)) * 10**6, np.arange(24) / 24
        costs = rng.lognormal() * weights * amounts ** rng.uniform(1.5, 3)
        menus.append(Menu(np.round(16 * weights * (1 - amounts)), costs, ("",) * 4 + ("a" if line else "",) * 20))
    limit, began = limit_at(menus, 0.5), time.monotonic()
    shares = choose(menus, limit)
    assert time.monotonic() - began < 20
    assert sum_of(menus, shares, "sizes") <= limit
    _, _, bound = choose_greedily(menus, limit)
    assert bound * (1 - 1e-9) <= sum_of(menus, shares, "costs") <= 1.001 * bound


def test_nothing_gets_to_standard_output_while_it_solves(capfd: pytest.CaptureFixture[str]) -> None:
    with silent_output():
        os.write(1, b"from below Python\n")
    os.write(1, b"afterwards\n")
    assert capfd.readouterr().out == "afterwards\n"
