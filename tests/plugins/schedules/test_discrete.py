"""What a budget may choose from: whole weights between what is taken and what is offered, and what lies near a plan."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.contracts import Better, Component, Offer, Problem, Treatment
from compressor_plugins.schedules.budget.continuous import ContinuousChoices
from compressor_plugins.schedules.budget.discrete import DiscreteChoices
from compressor_plugins.schedules.budget.options import OFFSETS, Option, Options, Table

PRUNE, INT8, INT4 = Offer(by_row=True), Offer(levels=(0.5,)), Offer(levels=(0.75,))


def make_problem(offers: Mapping[str, Offer], *widths: int) -> Problem:
    components = [Component(f"c{index}", "query", index, (4, width), 16) for index, width in enumerate(widths or (10,))]
    names = [component.name for component in components]
    return Problem(components, {n: dict.fromkeys(names, offer) for n, offer in offers.items()}, {"kl": Better.LOWER}, 8)


def make_menus(offers: Mapping[str, Offer], *widths: int, floor: float = 0.0) -> DiscreteChoices:
    problem = make_problem(offers, *widths)
    return DiscreteChoices(problem, {component.name: np.array([floor]) for component in problem.components})


def amounts_of(options: Sequence[Option], compressor: str) -> list[float]:
    return [option.amount for option in options if option is not None and option.compressor == compressor]


def test_the_first_options_are_all_there_are() -> None:
    options = make_menus({"prune": PRUNE, "int8": INT8, "int4": INT4}).begin()["c0"]
    assert options.count(None) == 1
    assert amounts_of(options, "prune") == pytest.approx(np.arange(21) / 20)
    assert (amounts_of(options, "int8"), amounts_of(options, "int4")) == ([0.5], [0.75])
    amounts = [option.amount if option else 0.0 for option in options]
    assert amounts == sorted(amounts)


def test_later_rounds_offer_only_what_takes_more() -> None:
    options = make_menus({"prune": PRUNE, "int8": INT8, "int4": INT4, "some": Offer(high=0.4)}, floor=0.5).begin()["c0"]
    assert None in options and amounts_of(options, "int8") == amounts_of(options, "some") == []
    assert amounts_of(options, "prune") == pytest.approx(np.arange(10, 21) / 20)


def test_levels_of_a_range_end_where_the_offer_ends_and_are_whole_weights() -> None:
    options = make_menus({"some": Offer(low=0.12, high=0.63), "int8": INT8}, 3).begin()["c0"]  # 12 weights
    assert amounts_of(options, "some") == pytest.approx([0.12, 2 / 12, 3 / 12, 4 / 12, 5 / 12, 6 / 12, 7 / 12, 0.63])


def test_near_a_fixed_option_are_its_neighbours_and_ranges_between() -> None:
    menus = make_menus({"prune": PRUNE, "int8": INT8, "int4": INT4, "int5": Offer(levels=(0.6875,))})
    options = menus.near({"c0": Treatment("int5", 0.6875)})["c0"]
    assert None not in options and amounts_of(options, "prune") == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75])
    assert [amounts_of(options, name) for name in ("int8", "int5", "int4")] == [[0.5], [0.6875], [0.75]]
    last = menus.near({"c0": Treatment("int4", 0.75)})["c0"]
    assert amounts_of(last, "prune") == pytest.approx([0.7, 0.75, 0.8, 0.85]) and amounts_of(last, "int8") == []
    first = menus.near({})["c0"]
    assert first.count(None) == 1 and amounts_of(first, "int8") == [0.5] and amounts_of(first, "int4") == []


def test_near_an_amount_of_a_range_are_amounts_around_it() -> None:
    menus = make_menus({"prune": PRUNE, "int8": INT8}, 100)
    now = Treatment("prune", 0.3)
    options = menus.near({"c0": now})["c0"]
    expected = np.ceil((0.3 + 0.1 * OFFSETS) * 400 - 1e-9) / 400
    assert now in options and None in options and amounts_of(options, "int8") == [0.5]
    assert amounts_of(options, "prune") == pytest.approx(expected)
    beyond = menus.near({"c0": Treatment("prune", 0.95)})["c0"]
    assert max(amounts_of(beyond, "prune")) == 1.0 and amounts_of(beyond, "int8") == [0.5] and None not in beyond


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))
def test_what_is_taken_is_among_the_options_near_it(width: int, amount: float, floor: float) -> None:
    """Also where it came about between two levels: a plan that is solved again may stay as it is."""
    menus = make_menus({"prune": PRUNE, "int8": INT8}, width, floor=floor)
    (now,) = menus._reach(menus.problem.components[0], "prune", [amount])
    assert now.amount >= max(amount, floor) - 1e-9
    again = menus.near({"c0": now})["c0"]
    assert again.count(now) == 1 and menus.near({"c0": again[-1]})["c0"].count(again[-1]) == 1


def make_table(menus: DiscreteChoices, options: Options, costs: Mapping[str, Mapping[str, float]]) -> Table:
    """Costs of a compressor are a number times the amount; nothing where it stays."""
    found = {
        name: np.array([[costs[name].get(o.compressor, 9.0) * o.amount if o else 0.0 for o in listed]])
        for name, listed in options.items()
    }
    return Table(options, menus.sizes(options), found)


def test_the_cheaper_of_two_compressors_with_one_amount_is_taken() -> None:
    menus = make_menus({"first": INT8, "second": INT8}, 10, 10)
    table = make_table(menus, menus.begin(), {"c0": {"first": 1, "second": 2}, "c1": {"first": 2, "second": 1}})
    assert menus.solve(table, 40.0) == {"c0": Treatment("first", 0.5), "c1": Treatment("second", 0.5)}
    assert menus.solve(table, 80.0) == {}
    assert menus.solve(table, 0.0) == menus.solve(table, 40.0)


def test_the_last_component_ends_between_two_levels_in_whole_weights() -> None:
    menus = make_menus({"prune": PRUNE, "int8": INT8}, 100)
    table = make_table(menus, menus.begin(), {"c0": {"prune": 1.0, "int8": 50.0}})
    assert menus.solve(table, 400 * (1 - 0.021)) == {"c0": Treatment("prune", 9 / 400)}
    assert menus.solve(table, 400 * (1 - 0.5101)) == {"c0": Treatment("prune", 205 / 400)}


def test_components_without_costs_stay_in_the_plan() -> None:
    menus = make_menus({"int8": INT8, "int4": INT4}, 10, 10)
    plan = {"c0": Treatment("int8", 0.5), "c1": Treatment("int8", 0.5)}
    options = menus.near(plan)
    table = make_table(menus, options, {"c0": {"int8": 1, "int4": 1}, "c1": {"int8": 1, "int4": 1}})
    known = Table(options, table.sizes, {"c1": table.costs["c1"]})
    assert menus.solve(known, 30.0, plan) == {"c0": plan["c0"], "c1": Treatment("int4", 0.75)}
    problem = menus.problem
    amounts = ContinuousChoices(
        make_problem({"prune": PRUNE}, 10, 10), {c.name: np.zeros(1) for c in problem.components}, "prune"
    )
    pruned = {"c0": Treatment("prune", 0.5), "c1": Treatment("prune", 0.5)}
    around = amounts.near(pruned)
    table = Table(around, amounts.sizes(around), {"c1": np.arange(1.0, 12.0)[None, :]})
    assert amounts.solve(table, 40.0, pruned) == pruned


def test_a_share_of_the_changes_are_those_that_matter_most() -> None:
    """Three components would be let off; half of them are two, which cost most where they are."""
    menus = make_menus({"int8": INT8}, 10, 10, 10, 10)
    plan = {f"c{index}": Treatment("int8", 0.5) for index in range(4)}
    options = menus.near(plan)
    gains = {"c0": -1.0, "c1": -3.0, "c2": -2.0, "c3": 0.0}
    costs = {name: np.array([[gains[name] if o is None else 0.0 for o in options[name]]]) for name in options}
    table = Table(options, menus.sizes(options), costs)
    whole, half, least = (menus.solve(table, 160.0, plan, share) for share in (1.0, 0.5, 1 / 16))
    assert sorted(whole) == ["c3"]
    assert sorted(half) == ["c0", "c3"] and sorted(least) == ["c0", "c2", "c3"]


def test_distance_is_a_mean_over_weights_and_another_compressor_is_far() -> None:
    menus = make_menus({"prune": PRUNE, "int8": INT8}, 10, 30, floor=0.2)
    first = {"c0": Treatment("prune", 0.5)}
    assert menus.distance(first, first) == 0
    assert menus.distance(first, {}) == pytest.approx(0.3 / 4)
    assert menus.distance(first, {"c0": Treatment("int8", 0.5)}) == pytest.approx(1 / 4)
    rows = ContinuousChoices(make_problem({"prune": PRUNE}, 10), {"c0": np.zeros(4)}, "prune", by_row=True)
    up, down = (Treatment("prune", 0.5, rows=rows) for rows in ((0.4, 0.4, 0.6, 0.6), (0.6, 0.6, 0.4, 0.4)))
    assert rows.distance({"c0": up}, {"c0": down}) == pytest.approx(0.2)
