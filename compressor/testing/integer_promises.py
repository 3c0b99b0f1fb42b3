"""The promises of weights that are integers with scales. Each function fails if a case breaks the promise."""

from __future__ import annotations

from compressor.testing.compressor_case import CompressorCase
from compressor.testing.input_promises import make_inputs
from compressor.testing.plugin_contract import same_bits


def integers_are_the_weight(case: CompressorCase) -> None:
    """If a weight has `quantized`, that decodes to `dense()`, and its integers fit into their bits."""
    for amount in case.amounts:
        compressed = case.compress(amount)
        if (matrix := compressed.quantized) is None:
            continue
        assert same_bits(matrix.dense(), compressed.dense()), f"amount {amount}: `quantized` has another `dense()`"
        for integers in (matrix.integers, *(() if matrix.zeros is None else (matrix.zeros,))):
            low, high, limit = int(integers.min()), int(integers.max()), 2 ** (matrix.integer_bits - 1)
            fits = -limit <= low and high < limit
            assert fits, f"amount {amount} has integers in [{low}, {high}] of {matrix.integer_bits} bits"


def integers_are_counted_exactly(case: CompressorCase) -> None:
    """`bits` is the sum of integers, scales and zero points, each padded by less than a byte."""
    for amount in case.amounts:
        compressed = case.compress(amount)
        if (matrix := compressed.quantized) is None:
            continue
        integers = [matrix.integers, *([] if matrix.zeros is None else [matrix.zeros])]
        stored = matrix.integer_bits * sum(part.numel() for part in integers) + 8 * matrix.scales.nbytes
        padding = compressed.bits - stored
        assert 0 <= padding < 8 * (1 + len(integers)), (
            f"amount {amount} takes {compressed.bits} bits, its integers, scales and zero points {stored}"
        )


def integers_go_with_the_inputs(case: CompressorCase) -> None:
    """If a weight has `quantized`, its rounding of inputs equals the `input_transform`."""
    for compressed in case.compress_all():
        if (matrix := compressed.quantized) is None:
            continue
        rounding, transform = matrix.input_rounding, compressed.input_transform
        assert (rounding is None) == (transform is None), (
            "`quantized.input_rounding` and `input_transform` must both be None, or neither"
        )
        if rounding is not None and transform is not None:
            inputs = make_inputs(case)
            assert same_bits(rounding(inputs), transform(inputs)), (
                "`quantized.input_rounding` and `input_transform` give different inputs"
            )
