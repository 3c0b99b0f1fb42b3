"""The promises of a compressor about amounts for single rows. Each function fails if a case breaks the promise."""

from __future__ import annotations

import copy

from compressor.errors import PlanError
from compressor.testing.compressor_case import CompressorCase
from compressor.testing.plugin_contract import randomness_untouched, same_bits


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
    import torch

    weight = case.weight
    before, there = torch.zeros_like(weight, dtype=torch.bool), (weight == 0).sum(1)
    for amount in case.amounts:
        dense = case.compress_rows([amount] * len(weight)).dense()
        zeros, count = dense == 0, round(amount * weight.shape[1])
        assert (zeros.sum(1) == there.clamp(min=count)).all(), f"amount {amount} wants {count} zeros in every row"
        assert same_bits(dense[~zeros], weight[~zeros]), f"amount {amount} changed a weight that stays"
        assert (zeros | ~before).all(), f"amount {amount} brings back what a smaller amount took"
        before = zeros
