"""Packing of integers against one long binary number."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor_plugins.quantization.packing import pack, unpack

examples = settings(max_examples=100, deadline=None)


def read_bits(packed: Tensor, bits: int, count: int) -> list[int]:
    """Unpacks by way of one long binary number, the first integer in its lowest bits."""
    number = int.from_bytes(bytes(packed.tolist()), "little")
    assert number < 1 << (bits * count), "padding must be zero"
    return [(number >> (bits * index)) % 2**bits - 2 ** (bits - 1) for index in range(count)]


@given(st.integers(2, 8), st.integers(1, 70), st.integers(0, 2**32))
@examples
def test_packing_is_tight_and_undone(bits: int, count: int, seed: int) -> None:
    generator = random.Random(seed)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    integers = torch.tensor([[generator.randint(lowest, highest) for _ in range(count)]], dtype=torch.int8)
    packed = pack(integers, bits)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(count * bits / 8)
    assert read_bits(packed, bits, count) == integers[0].tolist()
    assert torch.equal(unpack(packed, bits, (1, count)), integers)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_holds_the_extremes(bits: int) -> None:
    highest = 2 ** (bits - 1) - 1
    for value in (-highest - 1, highest, -1, 0):
        integers = torch.full((3, 5), value, dtype=torch.int8)
        assert torch.equal(unpack(pack(integers, bits), bits, (3, 5)), integers)
