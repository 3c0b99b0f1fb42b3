"""Pruners against brute force: exact counts among ties, nested zeros, survivors that keep every bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from compressor.contracts import Component, Compressor, Context, Offer
from compressor.errors import ConfigError, ModelError, PlanError
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.random import Random
from compressor_plugins.pruning.selection import Scope

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PRUNERS = [Magnitude(), Random()]
examples = settings(max_examples=40, deadline=None)


def context_of(weight: Tensor, seed: int = 0, name: str = "model.layers.0.mlp.up_proj") -> Context:
    out, width = weight.shape
    return Context(Component(name, "up", 0, (out, width), weight.element_size() * 8), seed)


def prune(pruner: Compressor, weight: Tensor, amount: float, seed: int = 0) -> Tensor:
    return pruner.compress(weight, amount, context_of(weight, seed)).dense()


def lowest_by_hand(values: list[float], count: int) -> set[int]:
    return set(sorted(range(len(values)), key=lambda index: (abs(values[index]), index))[:count])


def zeroed_by_hand(rows: list[list[float]], dropped: list[set[int]]) -> Tensor:
    """Rows with +0 at the dropped places."""
    return torch.tensor(
        [[0.0 if i in gone else v for i, v in enumerate(row)] for row, gone in zip(rows, dropped, strict=True)],
        dtype=torch.float64,
    )


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected) and torch.equal(found.signbit(), expected.signbit())


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Small matrices with many ties, zeros of both signs and any dtype, some of them transposed views."""
    out, width = draw(st.integers(1, 5)), draw(st.integers(1, 13))
    values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, 1e-7, float("inf")])
    flat = draw(st.lists(values, min_size=out * width, max_size=out * width))
    weight = torch.tensor(flat, dtype=draw(st.sampled_from(DTYPES))).view(out, width)
    return weight.T if draw(st.booleans()) else weight


amounts = st.floats(0, 1)


@given(matrices(), amounts)
@examples
def test_magnitude_in_the_matrix_drops_the_smallest(weight: Tensor, amount: float) -> None:
    flat = weight.double().flatten().tolist()
    gone = lowest_by_hand(flat, round(amount * len(flat)))
    expected = zeroed_by_hand([flat], [gone]).view(weight.shape).to(weight.dtype)
    assert_same_bits(prune(Magnitude(), weight, amount), expected)


@given(matrices(), amounts)
@examples
def test_magnitude_in_rows_drops_the_smallest_of_each(weight: Tensor, amount: float) -> None:
    rows = weight.double().tolist()
    gone = [lowest_by_hand(row, round(amount * len(row))) for row in rows]
    found = prune(Magnitude(scope=Scope.row), weight, amount)
    assert_same_bits(found, zeroed_by_hand(rows, gone).to(weight.dtype))


@given(matrices(), st.integers(1, 8), st.integers(1, 8))
@examples
def test_pattern_keeps_the_largest_of_each_group(weight: Tensor, keep: int, more: int) -> None:
    size = keep + more
    rows, gone = weight.double().tolist(), []
    for row in rows:
        gone.append(set())
        for start in range(0, len(row), size):
            group = row[start : start + size]
            kept = keep if len(group) == size else -(-keep * len(group) // size)
            gone[-1] |= {start + index for index in lowest_by_hand(group, len(group) - kept)}
    found = prune(Magnitude(pattern=f"{keep}:{size}"), weight, 1 - keep / size)
    assert_same_bits(found, zeroed_by_hand(rows, gone).to(weight.dtype))


def test_pattern_by_example() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0, 1.0, -1.0, 1.0, 1.0, 0.1, -0.2, 0.3]])
    expected = torch.tensor([[4.0, -3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, -0.2, 0.3]])
    assert_same_bits(prune(Magnitude(pattern="2:4"), weight, 0.5), expected)


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
@given(weight=matrices(), first=amounts, second=amounts, seed=st.integers(0, 2**31))
@examples
def test_zeros_are_exact_nested_and_survivors_untouched(
    pruner: Compressor, weight: Tensor, first: float, second: float, seed: int
) -> None:
    before = weight.clone()
    small, large = (prune(pruner, weight, amount, seed) for amount in sorted((first, second)))
    for found, amount in zip((small, large), sorted((first, second)), strict=True):
        assert (found == 0).sum() == max(round(amount * weight.numel()), int((weight == 0).sum()))
        assert_same_bits(found[found != 0], weight[found != 0])
        assert not found[(found == 0) & (weight != 0)].signbit().any()
    assert ((large == 0) | (small != 0)).all()
    assert_same_bits(weight, before)


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
@given(weight=matrices(), first=amounts, second=amounts)
@examples
def test_two_rounds_end_where_one_does(pruner: Compressor, weight: Tensor, first: float, second: float) -> None:
    low, high = sorted((first, second))
    in_two = prune(pruner, prune(pruner, weight, low), high)
    assert torch.equal(in_two, prune(pruner, weight, high))


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
@given(weight=matrices(), amount=amounts)
@examples
def test_what_goes_has_the_least_importance(pruner: Compressor, weight: Tensor, amount: float) -> None:
    importance = pruner.importance(weight, context_of(weight))
    assert importance is not None and importance.shape == weight.shape
    gone = prune(pruner, weight, amount) == 0
    if gone.any() and not gone.all():
        assert importance[gone].max() <= importance[~gone].min()


def prune_rows(pruner: Compressor, weight: Tensor, amounts: list[float], seed: int = 0) -> Tensor:
    return pruner.compress_rows(weight, amounts, context_of(weight, seed)).dense()


@pytest.mark.parametrize("pruner", [*PRUNERS, Magnitude(scope=Scope.row)], ids=["magnitude", "random", "row"])
@given(weight=matrices(), data=st.data(), seed=st.integers(0, 2**31))
@examples
def test_rows_lose_each_its_own_share(pruner: Compressor, weight: Tensor, data: st.DataObject, seed: int) -> None:
    """Against numpy, one row after the other; a larger amount's zeros include a smaller one's."""
    out, width = weight.shape
    given_amounts = [sorted(data.draw(st.tuples(amounts, amounts))) for _ in range(out)]
    before, importance = weight.clone(), pruner.importance(weight, context_of(weight, seed))
    assert importance is not None
    found = [prune_rows(pruner, weight, list(chosen), seed) for chosen in zip(*given_amounts, strict=True)]
    for which, pruned in enumerate(found):
        expected = weight.clone()
        for row, pair in enumerate(given_amounts):
            order = np.argsort(importance[row].double().numpy(), kind="stable")
            expected[row, order[: round(pair[which] * width)].copy()] = 0
        assert_same_bits(pruned, expected)
    small, large = found
    assert ((large == 0) | (small != 0)).all()
    assert_same_bits(weight, before)


@given(weight=matrices(), amount=amounts)
@examples
def test_equal_rows_are_the_scope_row(weight: Tensor, amount: float) -> None:
    in_rows = prune(Magnitude(scope=Scope.row), weight, amount)
    for scope in Scope:
        assert_same_bits(prune_rows(Magnitude(scope=scope), weight, [amount] * len(weight)), in_rows)


def test_rows_by_example() -> None:
    weight = torch.tensor([[3.0, -1.0, 2.0, 1.0], [1.0, 1.0, -1.0, 1.0], [0.0, 4.0, -0.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    expected = torch.tensor([[3.0, 0, 2, 0], [0, 1, -1, 1], [0, 4, 0, 5], [0, 0, 0, 0]])
    assert_same_bits(prune_rows(Magnitude(), weight, [0.5, 0.25, 0.5, 1.0]), expected)


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
def test_rows_stay_exact_among_many_bfloat16(pruner: Compressor) -> None:
    weight = torch.randn(300, 1003, generator=torch.Generator().manual_seed(0)).bfloat16()
    given_amounts = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    zeros = (prune_rows(pruner, weight, given_amounts) == 0).sum(1)
    assert zeros.tolist() == [round(amount * 1003) for amount in given_amounts]


def test_rounding_of_row_amounts_stays_in_the_row() -> None:
    found = prune_rows(Magnitude(), weight := torch.ones(2, 2_000_000), [-1e-7, 1 + 1e-6])
    assert_same_bits(found[0], weight[0])
    assert not found[1].any()


@pytest.mark.parametrize(
    ("pruner", "given_amounts", "message"),
    [
        (Magnitude(), [0.5] * 3, "`model.layers.0.mlp.up_proj` has 4 output rows, got 3 amounts for `magnitude`; give"),
        (Random(), [0.5] * 5, "`model.layers.0.mlp.up_proj` has 4 output rows, got 5 amounts for `random`; give"),
        (Magnitude(), [], "has 4 output rows, got 0 amounts"),
        (
            Random(),
            [0.5, 1.5, 0.5, 0.5],
            "`random` offers any amount in [0, 1] for `model.layers.0.mlp.up_proj`, got 1.5",
        ),
        (Magnitude(), [0.5, float("nan"), 0.5, 0.5], "got nan; ask for one of these"),
        (Magnitude(pattern="2:4"), [0.5] * 4, "`magnitude` takes one amount per matrix; give `model.layers.0.mlp.up_p"),
    ],
)
def test_rows_that_do_not_fit(pruner: Compressor, given_amounts: list[float], message: str) -> None:
    with pytest.raises(PlanError) as error:
        prune_rows(pruner, torch.ones(4, 6), given_amounts)
    assert message in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.731])
def test_counts_are_exact_among_many_bfloat16(amount: float) -> None:
    weight = torch.randn(300, 1003, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert len(weight.abs().unique()) < weight.numel() / 20
    assert (prune(Magnitude(), weight, amount) == 0).sum() == round(amount * weight.numel())
    per_row = (prune(Magnitude(scope=Scope.row), weight, amount) == 0).sum(1)
    assert (per_row == round(amount * 1003)).all()


def test_random_draws_from_seed_and_name_alone() -> None:
    weight = torch.ones(40, 50)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = prune(Random(), weight, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, prune(Random(), weight, 0.5))
    assert torch.equal(first, prune(Random(), weight.bfloat16() * -3, 0.5).float() / -3)
    others = [
        prune(Random(), weight, 0.5, seed=1),
        Random().compress(weight, 0.5, context_of(weight, name="model.layers.1.mlp.up_proj")).dense(),
    ]
    for other in others:
        # Two independent halves share a quarter: 500 ± 4.5 standard deviations of sqrt(2000 · 3/16).
        assert abs(int(((first == 0) & (other == 0)).sum()) - 500) < 90


def test_random_is_fair() -> None:
    """Zeros fall evenly over columns and do not look at the weights."""
    weight = torch.arange(1.0, 20001).view(200, 100)
    columns = (prune(Random(), weight, 0.3) == 0).sum(0).double()
    # Binomial with n = 200, p = 0.3 has a standard deviation of 6.5.
    assert abs(columns.std() - 6.5) < 1.5 and (columns - 60).abs().max() < 5 * 6.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_stored_like_any_weight(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 10).to(dtype)
    compressed = Magnitude().compress(weight, 0.5, context_of(weight))
    assert compressed.bits == 60 * dtype.itemsize * 8


def test_bits_are_those_of_the_checkpoint_on_disk() -> None:
    component = Component("a", "up", 0, (2, 3), stored_bits=16)
    assert Magnitude().compress(torch.ones(2, 3), 0.5, Context(component)).bits == 6 * 16


def test_offers() -> None:
    component = context_of(torch.ones(4, 6)).component
    assert Magnitude().offer(component) == Random().offer(component) == Offer(by_row=True)
    assert Magnitude(pattern="2:4").offer(component) == Offer(levels=(0.5,))
    assert Magnitude(pattern="1:4").offer(component) == Offer(levels=(0.75,))
    assert Magnitude(pattern="2:4").importance(torch.ones(4, 6), context_of(torch.ones(4, 6))) is None


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "2", "2:4:8", "a:b", "-1:4", " 2:4", "\r", "٢:٤"])
def test_bad_pattern_is_one_line(pattern: str) -> None:
    with pytest.raises(ConfigError) as error:
        Magnitude(pattern=pattern).offer(context_of(torch.ones(4, 6)).component)
    assert str(error.value) == (
        f"`compressor.magnitude.pattern` must be N:M with 1 <= N < M, got {pattern!r}; "
        "give for example '2:4' (YAML needs the quotes)"
    )


@pytest.mark.parametrize(
    ("pruner", "amount", "offered"),
    [
        (Magnitude(), 1.5, "any amount in [0, 1]"),
        (Magnitude(), -0.5, "any amount in [0, 1]"),
        (Random(), 1.01, "any amount in [0, 1]"),
        (Magnitude(pattern="2:4"), 0.25, "the amounts 0.5"),
        (Magnitude(pattern="2:4"), 0.0, "the amounts 0.5"),
    ],
)
def test_amount_that_is_not_offered(pruner: Compressor, amount: float, offered: str) -> None:
    weight = torch.ones(4, 6)
    with pytest.raises(PlanError) as error:
        prune(pruner, weight, amount)
    assert str(error.value) == (
        f"`{pruner.name}` offers {offered} for `model.layers.0.mlp.up_proj`, got {amount:g}; ask for one of these"
    )


def test_rounding_of_amounts_stays_in_the_matrix() -> None:
    weight = torch.randn(4, 6)
    assert_same_bits(prune(Magnitude(), weight, -1e-7), weight)
    assert not prune(Magnitude(), weight, 1 + 1e-7).any()


def test_nan_is_named() -> None:
    weight = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(ModelError, match=r"^weight of `model\.layers\.0\.mlp\.up_proj` contains NaN; [^\n]+$"):
        prune(Magnitude(), weight, 0.5)


def test_options_are_set_from_a_config() -> None:
    schema = OmegaConf.structured(Magnitude)
    for text in ("{scope: row, pattern: '2:4'}", '{scope: row, pattern: "2:4"}'):
        built = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(text)))
        assert built == Magnitude(Scope.row, "2:4")


def test_pattern_without_quotes_in_yaml_is_explained() -> None:
    """YAML 1.1 reads 2:4 as 124, in base 60."""
    pruner = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Magnitude), OmegaConf.create("pattern: 2:4")))
    assert isinstance(pruner, Magnitude)
    with pytest.raises(ConfigError, match="got '124'; give for example '2:4'"):
        pruner.offer(context_of(torch.ones(4, 6)).component)
