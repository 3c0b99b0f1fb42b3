"""The contract suite of compressors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from compressor.contracts import Component, Compressor, Context
from compressor.errors import PlanError
from compressor.testing.inputs import InputsContract
from compressor.testing.plugin_contract import randomness_untouched, same_bits

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda normal: normal,
    "bfloat16": lambda normal: normal.bfloat16(),
    "float16": lambda normal: normal.half(),
    "one_row": lambda normal: normal[:1],
    "one_column": lambda normal: normal[:, :1],
    "transposed": lambda normal: normal.T,
    "zeros": lambda normal: 0 * normal.abs(),
    "ties": lambda normal: normal.sign().bfloat16(),
    "half_zeros": lambda normal: normal.relu(),
    "outliers": lambda normal: (normal**9).bfloat16(),
}
"""What compressors are tried on, made of normal numbers `[out, in]` whose sizes no group divides."""


def make_calibration_data(width: int) -> dict[str, Tensor]:
    """Those of random inputs that go together, more than there are of them; the last one is always 0."""
    import torch

    from compressor.compression.calibration import CALIBRATION_DATA

    mixed = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width**0.5
    inputs = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(2)) @ mixed
    inputs[:, -1] = 0
    found = {}
    for name, accumulation in CALIBRATION_DATA.items():
        found[name] = torch.zeros(accumulation.shape(width), dtype=accumulation.dtype)
        accumulation.add(found[name], inputs)
        if accumulation.is_mean:
            found[name] /= len(inputs)
    return found


class CompressorContract(InputsContract):
    """The promises of a `Compressor`; calibration data, if it `needs` any, are those of random inputs."""

    contract = Compressor

    @pytest.fixture(params=list(WEIGHTS))
    def weight(self, request: pytest.FixtureRequest) -> Tensor:
        import torch

        return WEIGHTS[request.param](torch.randn(19, 75, generator=torch.Generator().manual_seed(0)))

    def context(self, weight: Tensor) -> Context:
        """A component that is stored as `weight` is, with all calibration data."""
        out, width = weight.shape
        component = Component("model.layers.0.mlp.up_proj", "up", 0, (out, width), weight.element_size() * 8)
        return Context(component, calibration=make_calibration_data(width))

    def test_needs_are_gathered(self, plugin: Compressor) -> None:
        """All calibration data in `needs` is one that a run gathers."""
        from compressor.compression.calibration import check_needs

        check_needs(plugin.name, plugin.needs)

    def amounts(self, plugin: Compressor, weight: Tensor) -> list[float]:
        """Every level that is offered, or a few amounts across the range; the smallest first."""
        offer = plugin.offer(self.context(weight).component)
        spread: list[float] = np.linspace(offer.low, offer.high, 6).tolist()
        return sorted(offer.levels or spread)

    def test_offer_is_valid(self, plugin: Compressor, weight: Tensor) -> None:
        """Levels are different and in (0, 1]; a range lies in [0, 1]."""
        offer = plugin.offer(self.context(weight).component)
        assert len(set(offer.levels)) == len(offer.levels), f"a level is offered twice: {offer}"
        assert all(0 < level <= 1 for level in offer.levels), f"a level is not in (0, 1]: {offer}"
        assert 0 <= offer.low <= offer.high <= 1, f"the range is not in [0, 1]: {offer}"

    def test_result_stands_in_for_the_weight(self, plugin: Compressor, weight: Tensor) -> None:
        """At every amount offered, `dense()` has the weight's shape, dtype and device, and is finite."""
        for amount in self.amounts(plugin, weight):
            dense = plugin.compress(weight, amount, self.context(weight)).dense()
            found, wanted = ((t.shape, t.dtype, t.device) for t in (dense, weight))
            assert found == wanted, f"amount {amount} gives {found} for {wanted}"
            assert dense.isfinite().all(), f"amount {amount} gives values that are not finite"

    def test_quantized_is_the_weight(self, plugin: Compressor, weight: Tensor) -> None:
        """A weight that is `quantized` decodes to `dense()`, and its integers fit into their bits."""
        for amount in self.amounts(plugin, weight):
            compressed = plugin.compress(weight, amount, self.context(weight))
            if (matrix := compressed.quantized) is None:
                continue
            assert same_bits(matrix.dense(), compressed.dense()), f"amount {amount}: `quantized` has another `dense()`"
            for integers in (matrix.integers, *(() if matrix.zeros is None else (matrix.zeros,))):
                low, high, limit = int(integers.min()), int(integers.max()), 2 ** (matrix.integer_bits - 1)
                assert -limit <= low and high < limit, (
                    f"amount {amount} has integers in [{low}, {high}] of {matrix.integer_bits} bits"
                )

    def test_is_pure(self, plugin: Compressor, weight: Tensor) -> None:
        """The same weight, amount and context give the same bits; weight and options stay as they are."""
        before, options = weight.clone(), copy.deepcopy(plugin)
        for amount in self.amounts(plugin, weight):
            with randomness_untouched():
                first = plugin.compress(weight, amount, self.context(weight)).dense().clone()
            again = plugin.compress(weight, amount, self.context(weight)).dense()
            assert same_bits(first, again), f"amount {amount} gives another result the second time"
            assert same_bits(weight, before), f"amount {amount} changed the weight that was given"
        assert plugin == options, "an option was changed"

    def test_many_amounts_are_as_each_alone(self, plugin: Compressor, weight: Tensor) -> None:
        """`compress_each` gives what `compress` gives, amount by amount, in the order asked for."""
        amounts = [*self.amounts(plugin, weight), *reversed(self.amounts(plugin, weight))]
        found = list(plugin.compress_each(weight, amounts, self.context(weight)))
        assert len(found) == len(amounts), f"{len(found)} results for {len(amounts)} amounts"
        for amount, compressed in zip(amounts, found, strict=True):
            alone = plugin.compress(weight, amount, self.context(weight))
            assert same_bits(compressed.dense(), alone.dense()), f"amount {amount} is another one among many"
            assert compressed.bits == alone.bits, f"amount {amount} takes other bits among many"

    def test_bits_count_what_is_stored(self, plugin: Compressor, weight: Tensor) -> None:
        """`bits` is positive, and a larger amount never takes more bits. A weight that is `quantized` is counted
        exactly: its integers, scales and zero points, each padded by less than a byte."""
        before = float("inf")
        for amount in self.amounts(plugin, weight):
            compressed = plugin.compress(weight, amount, self.context(weight))
            assert 0 < compressed.bits <= before, (
                f"amount {amount} takes {compressed.bits} bits, the one below {before}"
            )
            before = compressed.bits
            if (matrix := compressed.quantized) is not None:
                integers = [matrix.integers, *([] if matrix.zeros is None else [matrix.zeros])]
                stored = matrix.integer_bits * sum(part.numel() for part in integers) + 8 * matrix.scales.nbytes
                padding = compressed.bits - stored
                assert 0 <= padding < 8 * (1 + len(integers)), (
                    f"amount {amount} takes {compressed.bits} bits, its integers, scales and zero points {stored}"
                )

    def test_amount_zero_changes_nothing(self, plugin: Compressor, weight: Tensor) -> None:
        """Where a range begins at 0, amount 0 leaves every bit of the weight."""
        context = self.context(weight)
        offer = plugin.offer(context.component)
        if offer.is_range and offer.low == 0:
            assert same_bits(plugin.compress(weight, 0.0, context).dense(), weight), "amount 0 changed the weight"

    def test_pruning_is_cumulative(self, plugin: Compressor, weight: Tensor) -> None:
        """A pruner of single weights leaves round(amount · numel) zeros or more (a share per row may round per row),
        and the zeros of a larger amount include those of a smaller one."""
        import torch

        context = self.context(weight)
        if plugin.importance(weight, context) is None:
            return
        before = torch.zeros_like(weight, dtype=torch.bool)
        for amount in self.amounts(plugin, weight):
            zeros = plugin.compress(weight, amount, context).dense() == 0
            missing = round(amount * weight.numel()) - int(zeros.sum())
            assert missing <= len(weight) // 2, f"amount {amount} lacks {missing} zeros"
            assert (zeros | ~before).all(), f"amount {amount} brings back what a smaller amount took"
            before = zeros

    def test_rows_are_refused_where_they_do_not_fit(self, plugin: Compressor, weight: Tensor) -> None:
        """Amounts for more or fewer rows than there are, or for rows that are not offered, are a PlanError."""
        context, amount = self.context(weight), self.amounts(plugin, weight)[-1]
        numbers = [len(weight) - 1, len(weight) + 1]
        for number in numbers if plugin.offer(context.component).by_row else [len(weight)]:
            try:
                plugin.compress_rows(weight, [amount] * number, context)
            except PlanError:
                continue
            raise AssertionError(f"{number} amounts are taken, the weight has {len(weight)} rows")

    def test_rows_go_each_its_own_way(self, plugin: Compressor, weight: Tensor) -> None:
        """Where rows are offered, each ends as it would if all had its amount. `compress_rows` is as pure as
        `compress`, and its result can stand in for the weight."""
        context, amounts = self.context(weight), self.amounts(plugin, weight)
        if not plugin.offer(context.component).by_row:
            return
        before, options = weight.clone(), copy.deepcopy(plugin)
        alike = [plugin.compress_rows(weight, [amount] * len(weight), context).dense() for amount in amounts]
        mixed = [(7 * row) % len(amounts) for row in range(len(weight))]
        given = [amounts[choice] for choice in mixed]
        with randomness_untouched():
            first = plugin.compress_rows(weight, given, context).dense().clone()
        again = plugin.compress_rows(weight, given, context)
        assert same_bits(first, again.dense()), "the same amounts give another result the second time"
        assert same_bits(weight, before), "the weight that was given was changed"
        assert given == [amounts[choice] for choice in mixed] and plugin == options, "an amount or option was changed"
        assert (first.shape, first.dtype, first.device) == (weight.shape, weight.dtype, weight.device)
        assert first.isfinite().all() and again.bits > 0
        for row, choice in enumerate(mixed):
            found, wanted = first[row], alike[choice][row]
            assert same_bits(found, wanted), f"row {row} with amount {given[row]} depends on the amounts of others"

    def test_rows_lose_what_was_asked_for(self, plugin: Compressor, weight: Tensor) -> None:
        """Equal amounts in all rows: where a range begins at 0, amount 0 leaves every bit. A pruner of single weights
        leaves round(amount · in) zeros in every row, or as many as there were if these are more, and a larger amount's
        zeros include a smaller one's."""
        import torch

        context = self.context(weight)
        offer = plugin.offer(context.component)
        if not offer.by_row:
            return
        if offer.is_range and offer.low == 0:
            dense = plugin.compress_rows(weight, [0.0] * len(weight), context).dense()
            assert same_bits(dense, weight), "amount 0 in every row changed the weight"
        if plugin.importance(weight, context) is None:
            return
        before, there = torch.zeros_like(weight, dtype=torch.bool), (weight == 0).sum(1)
        for amount in self.amounts(plugin, weight):
            dense = plugin.compress_rows(weight, [amount] * len(weight), context).dense()
            zeros, count = dense == 0, round(amount * weight.shape[1])
            assert (zeros.sum(1) == there.clamp(min=count)).all(), f"amount {amount} wants {count} zeros in every row"
            assert same_bits(dense[~zeros], weight[~zeros]), f"amount {amount} changed a weight that stays"
            assert (zeros | ~before).all(), f"amount {amount} brings back what a smaller amount took"
            before = zeros

    def test_importance_is_an_order(self, plugin: Compressor, weight: Tensor) -> None:
        """`importance` is None or a number for each weight, and what is zero already goes first."""
        importance = plugin.importance(weight, self.context(weight))
        if importance is None:
            return
        assert importance.shape == weight.shape, f"importance has shape {tuple(importance.shape)}"
        assert not importance.isnan().any(), "importance holds NaN"
        for zero in importance[weight == 0]:
            assert (zero <= importance).all(), "a weight that is zero already must be among the least important"
