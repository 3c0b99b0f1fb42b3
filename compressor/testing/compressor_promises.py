"""The promises of a compressor, and to which cases they apply. Each function fails if a case breaks the promise."""

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from compressor.contracts.types import NoLevels
from compressor.errors import PlanError
from compressor.testing.compressor_case import CompressorCase
from compressor.testing.plugin_contract import randomness_untouched, same_bits


def offer_is_valid(case: CompressorCase) -> None:
    """Levels are distinct and in (0, 1]; a range is within [0, 1]."""
    offer = case.offer
    assert offer.levels or isinstance(offer.levels, NoLevels), "levels=() offers nothing; leave it out to offer a range"
    assert len(set(offer.levels)) == len(offer.levels), f"a level is offered twice: {offer}"
    assert all(0 < level <= 1 for level in offer.levels), f"a level is not in (0, 1]: {offer}"
    assert 0 <= offer.low <= offer.high <= 1, f"the range is not in [0, 1]: {offer}"


def result_stands_in_for_the_weight(case: CompressorCase) -> None:
    """At every amount offered, `dense()` has the weight's shape, dtype and device, and is finite."""
    for amount in case.amounts:
        dense = case.compress(amount).dense()
        found, wanted = ((t.shape, t.dtype, t.device) for t in (dense, case.weight))
        assert found == wanted, f"amount {amount} gives {found} for {wanted}"
        assert dense.isfinite().all(), f"amount {amount} gives values that are not finite"


def is_pure(case: CompressorCase) -> None:
    """The same weight, amount and context give the same bits. The weight and the options do not change."""
    before, options = case.weight.clone(), copy.deepcopy(case.plugin)
    for amount in case.amounts:
        with randomness_untouched():
            first = case.compress(amount).dense().clone()
        again = case.compress(amount).dense()
        assert same_bits(first, again), f"amount {amount} gives another result the second time"
        assert same_bits(case.weight, before), f"amount {amount} changed the weight that was given"
    assert case.plugin == options, "an option was changed"


def many_amounts_are_as_each_alone(case: CompressorCase) -> None:
    """`compress_each` gives the results of `compress` for each amount, in the same order."""
    amounts = [*case.amounts, *reversed(case.amounts)]
    found = list(case.plugin.compress_each(case.weight, amounts, case.context))
    assert len(found) == len(amounts), f"{len(found)} results for {len(amounts)} amounts"
    for amount, compressed in zip(amounts, found, strict=True):
        alone = case.compress(amount)
        assert same_bits(compressed.dense(), alone.dense()), f"amount {amount} gives another result among many"
        assert compressed.bits == alone.bits, f"amount {amount} takes other bits among many"


def bits_fall_with_the_amount(case: CompressorCase) -> None:
    """`bits` is positive, and a larger amount never takes more bits."""
    before = float("inf")
    for amount in case.amounts:
        bits = case.compress(amount).bits
        assert 0 < bits <= before, f"amount {amount} takes {bits} bits, the one below {before}"
        before = bits


def amount_zero_changes_nothing(case: CompressorCase) -> None:
    """If a range starts at 0, amount 0 does not change any bit of the weight."""
    assert same_bits(case.compress(0.0).dense(), case.weight), "amount 0 changed the weight"


def pruning_is_cumulative(case: CompressorCase) -> None:
    """A pruner of single weights gives at least round(amount · numel) zeros (a share per row may round per row). The
    zeros of a larger amount include those of a smaller one."""
    before = torch.zeros_like(case.weight, dtype=torch.bool)
    for amount in case.amounts:
        zeros = case.compress(amount).dense() == 0
        missing = round(amount * case.weight.numel()) - int(zeros.sum())
        assert missing <= len(case.weight) // 2, f"amount {amount} lacks {missing} zeros"
        assert (zeros | ~before).all(), f"amount {amount} brings back what a smaller amount took"
        before = zeros


def importance_is_an_order(case: CompressorCase) -> None:
    """`importance` is a number for each weight. Weights that are zero have the smallest importance."""
    importance = case.plugin.importance(case.weight, case.context)
    assert importance is not None
    assert importance.shape == case.weight.shape, f"importance has shape {tuple(importance.shape)}"
    assert not importance.isnan().any(), "importance holds NaN"
    for zero in importance[case.weight == 0]:
        assert (zero <= importance).all(), "a weight that is zero already must be among the least important"


def integers_are_the_weight(case: CompressorCase) -> None:
    """If a weight has `quantized`, that decodes to `dense()`, and its integers fit into their bits."""
    for amount, compressed, matrix in case.find_integers():
        assert same_bits(matrix.dense(), compressed.dense()), f"amount {amount}: `quantized` has another `dense()`"
        for integers in (matrix.integers, *(() if matrix.zeros is None else (matrix.zeros,))):
            low, high, limit = int(integers.min()), int(integers.max()), 2 ** (matrix.integer_bits - 1)
            fits = -limit <= low and high < limit
            assert fits, f"amount {amount} has integers in [{low}, {high}] of {matrix.integer_bits} bits"


def integers_are_counted_exactly(case: CompressorCase) -> None:
    """`bits` is the sum of integers, scales and zero points, each padded by less than a byte."""
    for amount, compressed, matrix in case.find_integers():
        integers = [matrix.integers, *([] if matrix.zeros is None else [matrix.zeros])]
        stored = matrix.integer_bits * sum(part.numel() for part in integers) + 8 * matrix.scales.nbytes
        padding = compressed.bits - stored
        assert 0 <= padding < 8 * (1 + len(integers)), (
            f"amount {amount} takes {compressed.bits} bits, its integers, scales and zero points {stored}"
        )


def integers_go_with_the_inputs(case: CompressorCase) -> None:
    """If a weight has `quantized`, its rounding of inputs equals the `input_transform`."""
    for _, compressed, matrix in case.find_integers():
        rounding, transform = matrix.input_rounding, compressed.input_transform
        assert (rounding is None) == (transform is None), (
            "`quantized.input_rounding` and `input_transform` must both be None, or neither"
        )
        if rounding is not None and transform is not None:
            inputs = make_inputs(case)
            assert same_bits(rounding(inputs), transform(inputs)), (
                "`quantized.input_rounding` and `input_transform` give different inputs"
            )


def rows_are_refused_where_they_do_not_fit(case: CompressorCase) -> None:
    """A wrong number of amounts, or amounts for rows that are not offered, raises PlanError."""
    amount, rows = case.amounts[-1], len(case.weight)
    for number in [rows - 1, rows + 1] if case.offer.by_row else [rows]:
        try:
            case.compress_rows([amount] * number)
        except PlanError:
            continue
        raise AssertionError(f"{number} amounts are accepted, the weight has {rows} rows")


def rows_go_each_its_own_way(case: CompressorCase) -> None:
    """Each row gets the same result as if all rows had its amount. `compress_rows` is as pure as `compress`, and its
    result has the weight's shape, dtype and device."""
    weight, amounts = case.weight, case.amounts
    before, options = weight.clone(), copy.deepcopy(case.plugin)
    alike = [case.compress_rows([amount] * len(weight)).dense() for amount in amounts]
    mixed = [(7 * row) % len(amounts) for row in range(len(weight))]
    given = [amounts[choice] for choice in mixed]
    with randomness_untouched():
        first = case.compress_rows(given).dense().clone()
    again = case.compress_rows(given)
    assert same_bits(first, again.dense()), "the same amounts give another result the second time"
    assert same_bits(weight, before), "the weight that was given was changed"
    assert given == [amounts[choice] for choice in mixed] and case.plugin == options, "an amount or option was changed"
    assert (first.shape, first.dtype, first.device) == (weight.shape, weight.dtype, weight.device)
    assert first.isfinite().all() and again.bits > 0
    for row, choice in enumerate(mixed):
        found, wanted = first[row], alike[choice][row]
        assert same_bits(found, wanted), f"row {row} with amount {given[row]} depends on the amounts of others"


def amount_zero_in_every_row_changes_nothing(case: CompressorCase) -> None:
    """If a range starts at 0, amount 0 in all rows does not change any bit of the weight."""
    dense = case.compress_rows([0.0] * len(case.weight)).dense()
    assert same_bits(dense, case.weight), "amount 0 in every row changed the weight"


def rows_lose_what_was_asked_for(case: CompressorCase) -> None:
    """With equal amounts in all rows, a pruner of single weights gives round(amount · in) zeros in each row, or as many
    as there were if these are more. The zeros of a larger amount include those of a smaller one."""
    weight = case.weight
    before, there = torch.zeros_like(weight, dtype=torch.bool), (weight == 0).sum(1)
    for amount in case.amounts:
        dense = case.compress_rows([amount] * len(weight)).dense()
        zeros, count = dense == 0, round(amount * weight.shape[1])
        assert (zeros.sum(1) == there.clamp(min=count)).all(), f"amount {amount} wants {count} zeros in every row"
        assert same_bits(dense[~zeros], weight[~zeros]), f"amount {amount} changed a weight that stays"
        assert (zeros | ~before).all(), f"amount {amount} brings back what a smaller amount took"
        before = zeros


def make_inputs(case: CompressorCase) -> Tensor:
    """`[sequence, position, in]`: normal random tokens, some scaled, one with outliers and one of zeros."""
    width = case.weight.shape[1]
    inputs = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(3))
    inputs[0] *= torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None]
    inputs[1, 2, :: max(1, width // 3)] *= 100
    return inputs.to(case.weight.dtype)


def transformed_inputs_are_announced(case: CompressorCase) -> None:
    """If `transforms_inputs` is False, no weight has an `input_transform`."""
    for compressed in case.compress_all():
        assert case.plugin.transforms_inputs or compressed.input_transform is None, (
            "a weight has an `input_transform`, so `transforms_inputs` must be True"
        )


def transformed_inputs_stand_in_for_the_inputs(case: CompressorCase) -> None:
    """`input_transform` keeps shape, dtype and device, and gives finite numbers; also for empty inputs."""
    for compressed in case.compress_all():
        if (input_transform := compressed.input_transform) is None:
            continue
        inputs = make_inputs(case)
        for given in (inputs, inputs[0], inputs[0, 0], inputs[:0]):
            found = input_transform(given)
            assert (found.shape, found.dtype, found.device) == (given.shape, given.dtype, given.device)
            assert found.isfinite().all(), "transformed inputs hold NaN or infinity"


def input_transform_is_pure(case: CompressorCase) -> None:
    """The same inputs give the same bits, also with a weight that is compressed again. Inputs do not change."""
    inputs = make_inputs(case)
    before = inputs.clone()
    for compressed, again in zip(case.compress_all(), case.compress_all(), strict=True):
        if compressed.input_transform is None or again.input_transform is None:
            assert compressed.input_transform is again.input_transform, (
                "the same weight transforms its inputs only once"
            )
            continue
        with randomness_untouched():
            first = compressed.input_transform(inputs).clone()
        assert same_bits(first, compressed.input_transform(inputs)), (
            "the same inputs give another result the second time"
        )
        assert same_bits(first, again.input_transform(inputs)), "the same weight transforms its inputs in another way"
        assert same_bits(inputs, before), "the inputs that were given were changed"


def every_token_is_transformed_by_itself(case: CompressorCase) -> None:
    """The result for a token does not depend on other tokens, because trials are scored in batches of any size."""
    inputs = make_inputs(case)
    for compressed in case.compress_all():
        if compressed.input_transform is None:
            continue
        together = compressed.input_transform(inputs)
        for sequence, position in itertools.product(*map(range, inputs.shape[:2])):
            alone = compressed.input_transform(inputs[sequence : sequence + 1, position : position + 1])
            assert same_bits(together[sequence, position], alone[0, 0]), "a token depends on the tokens beside it"


Promise = Callable[[CompressorCase], None]
PROMISES: dict[Promise, Callable[[CompressorCase], bool]] = {
    offer_is_valid: CompressorCase.always,
    result_stands_in_for_the_weight: CompressorCase.always,
    is_pure: CompressorCase.always,
    many_amounts_are_as_each_alone: CompressorCase.always,
    bits_fall_with_the_amount: CompressorCase.always,
    amount_zero_changes_nothing: CompressorCase.starts_at_zero,
    pruning_is_cumulative: CompressorCase.ranks_weights,
    importance_is_an_order: CompressorCase.ranks_weights,
    integers_are_the_weight: lambda case: case.has_integers,
    integers_are_counted_exactly: lambda case: case.has_integers,
    integers_go_with_the_inputs: lambda case: case.has_integers,
    rows_are_refused_where_they_do_not_fit: CompressorCase.always,
    rows_go_each_its_own_way: CompressorCase.has_rows,
    amount_zero_in_every_row_changes_nothing: lambda case: case.has_rows() and case.starts_at_zero(),
    rows_lose_what_was_asked_for: lambda case: case.has_rows() and case.ranks_weights(),
    transformed_inputs_are_announced: CompressorCase.always,
    transformed_inputs_stand_in_for_the_inputs: CompressorCase.transforms_inputs,
    input_transform_is_pure: CompressorCase.transforms_inputs,
    every_token_is_transformed_by_itself: CompressorCase.transforms_inputs,
}
"""Promise -> whether it applies to a case."""
