"""The global threshold against a full sort of all weights, with massive ties, zeros and awkward floats."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compressor.contracts import Component, CountRequest, Dialogue, KeepRequest, Offer, Problem
from compressor_plugins.schedules.global_threshold import GlobalThreshold, cut_bracket, float_at, split_ties

Weights = Mapping[str, NDArray[np.float64]]


@dataclass
class Counter:
    """Answers by counting importances; a kept plan prunes, after which `recover` may change the importances."""

    importance: dict[str, NDArray[np.float64]]
    offer: Offer = field(default_factory=Offer)
    recover: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda importance: importance
    counted: list[CountRequest] = field(default_factory=list)
    kept: list[KeepRequest] = field(default_factory=list)

    def run(self, targets: list[float]) -> list[dict[str, int]]:
        """How many weights of each component each round prunes."""
        components = [Component(name, "query", 0, (1, len(w)), 32) for name, w in self.importance.items()]
        offers = {"magnitude": dict.fromkeys(self.importance, self.offer)}
        dialogue = Dialogue(GlobalThreshold(targets), Problem(components, offers, {}, 10))
        rounds = []
        while (request := dialogue.propose()) is not None:
            if isinstance(request, CountRequest):
                self.counted.append(request)
                limits = list(request.thresholds)
                assert limits == sorted(set(limits)) and len(limits) <= 256
                dialogue.tell({name: [int((w <= t).sum()) for t in limits] for name, w in self.importance.items()})
            elif isinstance(request, KeepRequest):
                self.kept.append(request)
                rounds.append({name: self.prune(name, t.amount) for name, t in request.plan.items()})
                dialogue.tell({name: count / len(self.importance[name]) for name, count in rounds[-1].items()})
        return rounds

    def prune(self, name: str, amount: float) -> int:
        importance = self.importance[name]
        count = round(amount * len(importance))
        pruned = np.argsort(importance, kind="stable")[:count]
        self.importance[name] = self.recover(np.where(np.isin(np.arange(len(importance)), pruned), 0.0, importance))
        return count


def check_against_sort(weights: Weights, counts: Mapping[str, int], target: float) -> None:
    """Everything below the wanted-th smallest goes, nothing above it, and ties by proportion to one weight each."""
    everything = np.sort(np.concatenate(list(weights.values())))
    wanted = round(target * len(everything))
    assert sum(counts.values()) == wanted
    threshold = everything[wanted - 1]
    below = {name: int((w < threshold).sum()) for name, w in weights.items()}
    ties = {name: int((w == threshold).sum()) for name, w in weights.items()}
    share = (wanted - sum(below.values())) / sum(ties.values())
    for name, count in counts.items():
        assert abs(count - below[name] - share * ties[name]) < 1.0


def draw_weights(seed: int, kind: str) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    sizes, scales = rng.integers(1, 3_000, 4), 10 ** rng.uniform(-6, 1, 4)
    weights = {}
    for index, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        values = np.abs(rng.standard_normal(size) * scale).astype(np.float32)
        if kind == "bfloat16":
            values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        elif kind == "zeros":
            values[rng.random(size) < 0.6] = 0.0
        elif kind == "few":
            values = rng.integers(0, 3, size).astype(np.float32)
        elif kind == "signed":
            values = rng.standard_normal(size).astype(np.float32)
        elif kind == "tiny":
            values = (values * np.float32(1e-38)).astype(np.float32)
        weights[f"c{index}"] = values.astype(np.float64)
    return weights


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "zeros", "few", "signed", "tiny"])
@given(seed=st.integers(0, 2**32 - 1), target=st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=20)
def test_the_threshold_is_that_of_a_full_sort(kind: str, seed: int, target: float) -> None:
    weights = draw_weights(seed, kind)
    if round(target * sum(map(len, weights.values()))) == 0:
        return
    counter = Counter(dict(weights))
    (counts,) = counter.run([target])
    check_against_sort(weights, counts, target)
    assert len(counter.counted) <= 4


def test_later_rounds_count_what_is_pruned_already() -> None:
    weights = draw_weights(0, "bfloat16")
    counter = Counter(dict(weights))
    for counts, target in zip(counter.run([0.2, 0.5, 0.75]), [0.2, 0.5, 0.75], strict=True):
        # pruning to zero keeps the order, so that every round is one cut of the first order, up to the split of ties
        assert sum(counts.values()) == round(target * sum(map(len, weights.values())))
    assert [request.target for request in counter.kept] == [0.2, 0.5, 0.75]


def test_no_component_loses_zeros_when_weights_regrow() -> None:
    rng = np.random.default_rng(0)
    weights = draw_weights(3, "float32")
    counter = Counter(dict(weights), recover=lambda importance: np.abs(rng.standard_normal(len(importance))))
    first, second = counter.run([0.5, 0.6])
    assert all(second[name] >= first[name] for name in first)
    assert sum(second.values()) == round(0.6 * sum(map(len, weights.values())))


def test_no_component_gets_more_than_is_offered() -> None:
    weights = {"small": np.full(1000, 0.001), "large": np.linspace(1.0, 2.0, 1000)}
    (counts,) = Counter(dict(weights), Offer(low=0.1, high=0.8)).run([0.6])
    assert counts == {"small": 800, "large": 400}
    (counts,) = Counter(dict(weights), Offer(low=0.1, high=0.8)).run([0.3])
    assert counts == {"small": 500, "large": 100}


def test_ties_at_zero_are_split_by_their_number() -> None:
    weights = {"a": np.zeros(100), "b": np.concatenate([np.zeros(300), np.ones(600)])}
    (counts,) = Counter(weights).run([0.2])
    assert counts == {"a": 50, "b": 150}


@pytest.mark.parametrize("special", [np.inf, np.nan, -np.inf])
def test_importances_beyond_all_numbers(special: float) -> None:
    weights = {"a": np.array([1.0, 2.0, special, special]), "b": np.array([3.0, 4.0, 5.0, 6.0])}
    (counts,) = Counter(dict(weights)).run([0.25])
    assert counts == {"a": 2, "b": 0}
    (counts,) = Counter(dict(weights)).run([1.0])
    assert counts == {"a": 4, "b": 4}


def test_float64_importances_are_told_apart_as_float32() -> None:
    close = 1.0 + np.arange(1000) * 1e-12
    (counts,) = Counter({"a": close, "b": close + 1e-9}).run([0.5])
    assert sum(counts.values()) == 1000


@given(st.integers(-0x7F800000, 0x7F800000 - 2))
def test_places_are_in_the_order_of_floats(place: int) -> None:
    lower, upper = float_at([place, place + 1])
    assert lower < upper or place in (-1, 0)
    assert np.float32(lower) == lower
    assert lower == upper or np.nextafter(np.float32(lower), np.float32(np.inf)) == np.float32(upper)


@given(st.integers(-(2**31), 2**31), st.integers(2, 2**32))
def test_a_bracket_is_cut_inside(low: int, width: int) -> None:
    grid = cut_bracket(low, low + width)
    assert grid == sorted(set(grid)) and low < grid[0] and grid[-1] < low + width
    assert max(b - a for a, b in zip([low, *grid], [*grid, low + width], strict=True)) <= width // 257 + 1


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=8), st.floats(0, 1))
def test_split_ties_meets_the_total(pairs: list[tuple[int, int]], share: float) -> None:
    below = np.array([count for count, _ in pairs], dtype=np.int64)
    at = below + np.array([ties for _, ties in pairs], dtype=np.int64)
    wanted = int(below.sum()) + round(share * int((at - below).sum()))
    counts = split_ties(below, at, wanted)
    assert counts.sum() == wanted
    assert np.all(below <= counts) and np.all(counts <= at)
