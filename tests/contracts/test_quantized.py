"""`QuantizedMatrix`: its formula, its bits, its scheme, and the same matrix without zero points."""

import pytest
import torch

from compressor.contracts import QuantizedMatrix, Scheme, Strategy, TokenRounding, join_groups, split_groups

INTEGERS = torch.tensor([[-8, 7, 3], [1, 0, -2]], dtype=torch.int8)
SCALES = torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=torch.bfloat16)
ZEROS = torch.tensor([[1, -1], [0, 2]], dtype=torch.int8)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_its_value_is_the_formula() -> None:
    matrix = QuantizedMatrix(INTEGERS, SCALES, 4, 2, torch.float32, ZEROS)
    assert matrix.dense().tolist() == [[-4.5, 3.0, 8.0], [1.0, 0.0, -1.0]]
    assert matrix.scheme == Scheme(4, Strategy.group, 2, False) and not matrix.is_even
    row = QuantizedMatrix(INTEGERS, SCALES[:, :1], 4, 3, torch.float64)
    whole = QuantizedMatrix(INTEGERS, SCALES[:1, :1], 4, 6, torch.float32)
    assert row.scheme == Scheme(4, Strategy.channel, 0, True) and row.is_even
    assert whole.scheme == Scheme(4, Strategy.tensor, 0, True) and whole.is_even
    assert whole.dense().tolist() == (INTEGERS * 0.5).tolist()
    assert row.dense().tolist() == (INTEGERS * SCALES[:, :1]).tolist()
    assert torch.equal(QuantizedMatrix(INTEGERS, SCALES[:, :1], 4, 0, torch.float64).dense(), row.dense())


def test_its_bits_are_those_of_integers_scales_and_zero_points() -> None:
    assert QuantizedMatrix(INTEGERS, SCALES, 4, 2, torch.float32).bits == 6 * 4 + 4 * 16
    assert QuantizedMatrix(INTEGERS, SCALES.float(), 5, 2, torch.float32, ZEROS).bits == (6 + 4) * 5 + 4 * 32


def test_it_is_its_own_quantized_form_and_rounds_inputs_if_it_says_so() -> None:
    matrix = QuantizedMatrix(INTEGERS, SCALES, 4, 2, torch.float32)
    assert matrix.quantized is matrix and matrix.input_transform is None
    rounded = QuantizedMatrix(INTEGERS, SCALES, 4, 2, torch.float32, input_rounding=TokenRounding(4))
    assert rounded.input_transform == rounded.scheme.input_rounding == TokenRounding(4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_every_scale_gives_what_float32_gives(stored: torch.dtype, dtype: torch.dtype) -> None:
    """Also where it is computed in the dtype of the scales: every positive number of 16 bits, and float32 at random."""
    if stored.itemsize == 2:
        patterns = torch.arange(2**15, dtype=torch.int16)
    else:
        patterns = torch.randint(2**31 - 1, (2**15,), generator=torch.Generator().manual_seed(0)).int()
    scales = patterns.view(stored)
    scales = scales[scales.isfinite()][:, None]
    integers = torch.tensor([-128, -127, -101, -7, -1, 0, 1, 3, 85, 127], dtype=torch.int8).repeat(len(scales), 1)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for zeros in (None, *(torch.full(scales.shape, zero, dtype=torch.int8) for zero in (-128, -3, 0, 127))):
        found = QuantizedMatrix(integers, scales, 8, 10, dtype, zeros).dense()
        differences = integers.to(compute) - (0 if zeros is None else zeros.to(compute))
        assert found.dtype == dtype and torch.equal(found, (scales.to(compute) * differences).to(dtype))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("rows", "group"), [(5, 1), (5, 7), (5, 8), (5, 24), (1, 120)])
def test_without_zero_points_it_is_the_same_weight(bits: int, rows: int, group: int) -> None:
    draw, limit = torch.Generator().manual_seed(bits), 2 ** (bits - 1)
    integers = torch.randint(-limit, limit, (5, 24), generator=draw, dtype=torch.int8)
    scales = torch.rand(rows, -(-120 // rows // group), generator=draw)
    zeros = torch.randint(-limit, limit, scales.shape, generator=draw, dtype=torch.int8)
    matrix = QuantizedMatrix(integers, scales, bits, group, torch.float32, zeros)
    symmetric = matrix.without_zeros()
    if bits == 8:
        assert symmetric is None
        return
    assert symmetric is not None and symmetric.zeros is None and symmetric.integer_bits == bits + 1
    assert torch.equal(symmetric.dense(), matrix.dense()) and symmetric.without_zeros() is symmetric
    assert -2 * limit <= int(symmetric.integers.min()) and int(symmetric.integers.max()) < 2 * limit


@pytest.mark.parametrize("group", [0, 1, 4, 5, 7, 100])
def test_groups_are_joined_as_they_were_split(group: int) -> None:
    matrix = torch.arange(1, 16).view(3, 5)
    for rows in (3, 1):
        groups = split_groups(matrix, rows, group)
        width = 15 // rows
        assert groups.shape[2] == (min(group, width) or width) and groups.sum() == matrix.sum()
        assert torch.equal(join_groups(groups, matrix.shape), matrix)
