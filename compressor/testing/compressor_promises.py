"""The promises of a compressor about its compressed weights. Each function fails if a case breaks the promise."""

from __future__ import annotations

import copy

from compressor.testing.compressor_case import CompressorCase
from compressor.testing.plugin_contract import randomness_untouched, same_bits


def offer_is_valid(case: CompressorCase) -> None:
    """Levels are distinct and in (0, 1]; a range is within [0, 1]."""
    offer = case.offer
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
    import torch

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
