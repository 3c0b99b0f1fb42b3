"""The suite of compressors notices every broken promise, one mutant for each, and lets honest compressors pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    InputTransform,
    Offer,
    QuantizedMatrix,
    TokenRounding,
)
from compressor.errors import PlanError
from compressor.testing import CompressorContract, compressor_promises
from compressor.testing.compressor_case import CompressorCase
from compressor.testing.compressor_promises import PROMISES
from tests.support.broken_plugins import broken


@dataclass(frozen=True)
class Stored(CompressedWeight):
    """A weight as it is, of which `change` makes what becomes of inputs."""

    weight: Tensor
    extra_bits: int = 0
    change: InputTransform | None = None

    def dense(self) -> Tensor:
        return self.weight

    @property
    def bits(self) -> int:
        return self.weight.numel() * self.weight.element_size() * 8 + self.extra_bits

    @property
    def input_transform(self) -> InputTransform | None:
        return self.change


@dataclass
class First(Compressor):
    """An honest pruner to break: what is zero goes first, then the first weights."""

    name: ClassVar[str] = "first"

    def offer(self, component: Component) -> Offer:
        return Offer()

    def importance(self, weight: Tensor, context: Context) -> Tensor:
        return torch.arange(1.0, weight.numel() + 1).view(weight.shape).masked_fill(weight == 0, 0)

    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        order = self.importance(weight, context).flatten().argsort(stable=True)
        pruned = weight.clone().flatten()
        pruned[order[: round(amount * len(order))]] = 0
        return Stored(pruned.view(weight.shape))


class TestHonestPruner(CompressorContract):
    instance = First()


@dataclass
class FirstOfRows(First):
    """As honest, by row too."""

    def offer(self, component: Component) -> Offer:
        return Offer(by_row=True)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        if len(amounts) != len(weight):
            raise PlanError(f"{len(weight)} amounts are wanted, got {len(amounts)}; give each row one")
        rows = [self.compress(row[None], amount, context).dense() for row, amount in zip(weight, amounts, strict=True)]
        return Stored(torch.cat(rows))


class TestHonestPrunerOfRows(CompressorContract):
    instance = FirstOfRows()


@dataclass(frozen=True)
class Whole(CompressedWeight):
    """Integers of 8 bits with a scale of 1 for each row."""

    integers: Tensor
    dtype: torch.dtype
    inputs: TokenRounding | None
    extra_bits: int = 0

    @property
    def quantized(self) -> QuantizedMatrix:
        scales = torch.ones(len(self.integers), 1, dtype=self.dtype)
        width = self.integers.shape[1]
        return QuantizedMatrix(self.integers, scales, 8, width, self.dtype, input_rounding=self.inputs)

    def dense(self) -> Tensor:
        return self.quantized.dense()

    @property
    def bits(self) -> int:
        return 8 * (self.integers.nbytes + self.quantized.scales.nbytes) + self.extra_bits

    @property
    def input_transform(self) -> InputTransform | None:
        return self.inputs


@dataclass
class Round(Compressor):
    """An honest quantizer to break, which rounds inputs too."""

    name: ClassVar[str] = "round"
    compressed: ClassVar[type[Whole]] = Whole

    @property
    def transforms_inputs(self) -> bool:
        return True

    def offer(self, component: Component) -> Offer:
        return Offer(levels=(0.5,))

    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        integers = weight.float().round().clamp(-128, 127).to(torch.int8)
        return self.compressed(integers, weight.dtype, TokenRounding())


class TestHonestQuantizer(CompressorContract):
    instance = Round()


def clip(inputs: Tensor) -> Tensor:
    return inputs.clamp(-2, 2)


@dataclass
class Clip(Compressor):
    """An honest compressor to break, which clips inputs and leaves weights alone."""

    name: ClassVar[str] = "clip"
    change: ClassVar[Callable[..., Tensor]] = staticmethod(clip)

    @property
    def transforms_inputs(self) -> bool:
        return True

    def offer(self, component: Component) -> Offer:
        return Offer(levels=(0.5,))

    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        return Stored(weight, change=self.change)


class TestHonestClipper(CompressorContract):
    instance = Clip()


def compress_by(change: Callable[[Tensor, float], CompressedWeight]) -> dict[str, Any]:
    return {"compress": lambda self, weight, amount, context: change(weight, amount)}


def compress_rows_by(change: Callable[[Tensor, Sequence[float]], Tensor]) -> dict[str, Any]:
    """Breaks what the honest one gives."""

    def compress_rows(self: Compressor, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        FirstOfRows().compress_rows(weight, amounts, context)
        return Stored(change(weight, amounts))

    return {"compress_rows": compress_rows}


def prune_end(weight: Tensor, amount: float, last: bool) -> Tensor:
    """The first, or the last, of all weights gone."""
    line, count = weight.flatten().clone(), round(amount * weight.numel())
    gone = slice(len(line) - count, None) if last else slice(count)
    line[gone] = 0.0
    return line.view(weight.shape)


def prune_first(weight: Tensor, amounts: Sequence[float]) -> Tensor:
    component = Component("a", "up", 0, (len(weight), weight.shape[1]), 32)
    return FirstOfRows().compress_rows(weight, amounts, Context(component)).dense()


def prune_either_end(weight: Tensor, amounts: Sequence[float]) -> Tensor:
    return prune_first(weight.flip(1), amounts).flip(1) if amounts[0] > 0.7 else prune_first(weight, amounts)


def change_by(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {"change": staticmethod(change)}


class OtherDense(Whole):
    def dense(self) -> Tensor:
        return super().dense() + 1


class OtherTransform(Whole):
    @property
    def input_transform(self) -> InputTransform | None:
        return TokenRounding(4)


class ByteShort(Whole):
    @property
    def bits(self) -> int:
        return super().bits - 8


MUTANTS: dict[str, tuple[type[Compressor], dict[str, Any]]] = {
    "offer_is_valid": (First, {"offer": lambda self, c: Offer(low=0.5, high=1.5)}),
    "result_stands_in_for_the_weight": (First, compress_by(lambda w, a: Stored(w.double()))),
    "is_pure": (First, compress_by(lambda w, a: Stored(w * torch.rand(w.shape)))),
    "many_amounts_are_as_each_alone": (
        First,
        {"compress_each": lambda self, w, amounts, c: (self.compress(w, max(amounts), c) for _ in amounts)},
    ),
    "bits_fall_with_the_amount": (First, compress_by(lambda w, a: Stored(w, round(100 * a)))),
    "integers_are_the_weight": (Round, {"compressed": OtherDense}),
    "integers_are_counted_exactly": (Round, {"compressed": ByteShort}),
    "integers_go_with_the_inputs": (Round, {"compressed": OtherTransform}),
    "amount_zero_changes_nothing": (First, compress_by(lambda w, a: Stored(w + 0.0))),
    "pruning_is_cumulative": (First, compress_by(lambda w, a: Stored(prune_end(w, a, last=a > 0.4)))),
    "importance_is_an_order": (First, {"importance": lambda self, w, c: -w.abs()}),
    "rows_are_refused_where_they_do_not_fit": (First, {"compress_rows": FirstOfRows.compress_rows}),
    "rows_go_each_its_own_way": (
        FirstOfRows,
        compress_rows_by(lambda w, a: prune_first(w, [sum(a) / len(a)] * len(a))),
    ),
    "amount_zero_in_every_row_changes_nothing": (FirstOfRows, compress_rows_by(lambda w, a: prune_first(w, a) + 0.0)),
    "rows_lose_what_was_asked_for": (FirstOfRows, compress_rows_by(prune_either_end)),
    "transformed_inputs_are_announced": (Clip, {"transforms_inputs": False}),
    "transformed_inputs_stand_in_for_the_inputs": (Clip, change_by(lambda x: x / x.abs().amax(-1, keepdim=True))),
    "input_transform_is_pure": (Clip, change_by(lambda x: x * torch.rand(x.shape[-1]))),
    "every_token_is_transformed_by_itself": (Clip, change_by(lambda x: x - x.mean(1, keepdim=True))),
}
"""Promise -> an honest compressor, and what breaks it."""

WEIGHT = torch.tensor([[0.5, -0.0, 0.25, 4.0, 1.0], [-1.0, 2.0, -3.0, 0.5, 0.0]]).repeat(2, 1)


def test_every_promise_has_a_mutant() -> None:
    assert {promise.__name__ for promise in PROMISES} == {*MUTANTS}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_a_broken_promise_is_noticed(promise: Callable[[CompressorCase], None]) -> None:
    honest, members = MUTANTS[promise.__name__]
    sound = CompressorCase(honest(), WEIGHT.clone())
    assert PROMISES[promise](sound)
    promise(sound)
    with pytest.raises(AssertionError):
        promise(CompressorCase(broken(honest, **members), WEIGHT.clone()))


def test_a_wrong_number_of_rows_must_be_refused() -> None:
    plugin = broken(FirstOfRows, compress_rows=lambda self, weight, amounts, context: Stored(weight))
    with pytest.raises(AssertionError, match="3 amounts are accepted, the weight has 4 rows"):
        compressor_promises.rows_are_refused_where_they_do_not_fit(CompressorCase(plugin, WEIGHT))


def collect(suite: type[CompressorContract]) -> set[str]:
    return {promise.__name__ for promise, _ in suite().list_promises(suite().instance)}


def test_only_promises_that_apply_are_collected() -> None:
    rows = {name for name in MUTANTS if "row" in name} - {"rows_are_refused_where_they_do_not_fit"}
    integers = {name for name in MUTANTS if name.startswith("integers")}
    inputs = {name for name in MUTANTS if "transform" in name} - {"transformed_inputs_are_announced"}
    pruning = {"pruning_is_cumulative", "importance_is_an_order", "amount_zero_changes_nothing"}
    assert collect(TestHonestPruner) == {*MUTANTS} - rows - integers - inputs
    assert collect(TestHonestPrunerOfRows) == {*MUTANTS} - integers - inputs
    assert collect(TestHonestQuantizer) == {*MUTANTS} - rows - pruning
    assert collect(TestHonestClipper) == {*MUTANTS} - rows - pruning - integers


def test_where_a_compressor_fails_every_promise_is_collected() -> None:
    """A test then reports the failure; a collection that fails would hide all other tests."""

    def fail(self: Compressor, component: Component) -> Offer:
        raise ZeroDivisionError

    suite = type("Suite", (CompressorContract,), {"instance": broken(First, offer=fail)})
    assert {"offer_is_valid", "rows_go_each_its_own_way", "integers_are_the_weight"} < collect(suite)


def test_where_a_fixture_makes_the_compressor_a_test_is_skipped_that_does_not_apply() -> None:
    suite = CompressorContract()
    assert {promise for promise, _ in suite.list_promises(None)} == {*PROMISES}
    suite.test_promise(First(), compressor_promises.rows_are_refused_where_they_do_not_fit, "float32")
    with pytest.raises(pytest.skip.Exception):
        suite.test_promise(First(), compressor_promises.rows_go_each_its_own_way, "float32")
