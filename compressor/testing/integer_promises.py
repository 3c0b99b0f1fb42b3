"""The promises of weights that are integers with scales; each fails where a case breaks it."""

from __future__ import annotations

from compressor.testing.compressor_case import CompressorCase
from compressor.testing.input_promises import make_inputs
from compressor.testing.plugin_contract import same_bits


def integers_are_the_weight(case: CompressorCase) -> None:
    """A `grid` decodes to `dense()`, and its integers fit into their bits."""
    for amount in case.amounts:
        compressed = case.compress(amount)
        if (grid := compressed.grid) is None:
            continue
        assert same_bits(grid.decode(case.weight.dtype), compressed.dense()), f"amount {amount} has another grid"
        for integers in (grid.integers, *(() if grid.zeros is None else (grid.zeros,))):
            low, high = int(integers.min()), int(integers.max())
            fits = -(2 ** (grid.bits - 1)) <= low and high < 2 ** (grid.bits - 1)
            assert fits, f"amount {amount} has integers in [{low}, {high}] of {grid.bits} bits"


def integers_are_counted_exactly(case: CompressorCase) -> None:
    """`bits` are those of integers, scales and zero points, each padded by less than a byte."""
    for amount in case.amounts:
        compressed = case.compress(amount)
        if (grid := compressed.grid) is None:
            continue
        integers = [grid.integers, *([] if grid.zeros is None else [grid.zeros])]
        stored = grid.bits * sum(part.numel() for part in integers) + 8 * grid.scales.nbytes
        padding = compressed.bits - stored
        assert 0 <= padding < 8 * (1 + len(integers)), (
            f"amount {amount} takes {compressed.bits} bits, its grid {stored}"
        )


def integers_go_with_the_inputs(case: CompressorCase) -> None:
    """A `grid` says the same of inputs as `input_transform`."""
    for compressed in case.compress_all():
        if (grid := compressed.grid) is None:
            continue
        assert (grid.inputs is None) == (compressed.input_transform is None), (
            "`grid.inputs` and `input_transform` must go together"
        )
        if grid.inputs is not None and compressed.input_transform is not None:
            inputs = make_inputs(case)
            assert same_bits(grid.inputs(inputs), compressed.input_transform(inputs)), "`grid.inputs` is another one"
