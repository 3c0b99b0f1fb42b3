"""Integer grids against naive loops: exact rounding, honest bits, half a step of error at every magnitude."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.contracts import Component, Compressor, Context, QuantizedMatrix
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Granularity, Int8
from compressor_plugins.quantization.rtn import Rtn

NAME = "model.layers.0.mlp.up_proj"
HALVES = [torch.bfloat16, torch.float16]
examples = settings(max_examples=40, deadline=None)


def component_of(weight: Tensor, stored_bits: int | None = None) -> Component:
    out, width = weight.shape
    return Component(NAME, "up", 0, (out, width), stored_bits or weight.element_size() * 8)


def quantize(compressor: Compressor, weight: Tensor, bits: int, stored_bits: int | None = None) -> QuantizedMatrix:
    component = component_of(weight, stored_bits)
    found = compressor.compress(weight, 1 - bits / component.stored_bits, Context(component))
    assert isinstance(found, QuantizedMatrix)
    return found


def round_by_hand(row: list[float], bits: int, group: int) -> list[tuple[float, float]]:
    """(value, scale) of each weight of a row: plain loops in double precision, scales not rounded."""
    half, result = 2 ** (bits - 1), []
    for start in range(0, len(row), group):
        weights = row[start : start + group]
        scale = max(map(abs, weights)) / (half - 0.5) or 1.0
        # Python's round is half to even, like the formula.
        result += [(scale * max(-half, min(half - 1, round(w / scale))), scale) for w in weights]
    return result


def matrices(dtypes: list[torch.dtype], values: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    @st.composite
    def draw_matrix(draw: st.DrawFn) -> Tensor:
        out, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
        flat = draw(st.lists(values, min_size=out * width, max_size=out * width))
        weight = torch.tensor(flat, dtype=torch.float64).to(draw(st.sampled_from(dtypes))).view(out, width)
        return weight.T if draw(st.booleans()) else weight

    return draw_matrix()


ordinary = st.floats(-8, 8).map(lambda value: round(value, 3))
widths, groups = st.integers(2, 8), st.integers(1, 12)


@given(matrices([torch.float64], ordinary), widths, groups)
@examples
def test_grid_is_the_formula(weight: Tensor, bits: int, group: int) -> None:
    """Up to the rounding of scales to 32 bits, which may turn a weight on the border of two integers."""
    found = quantize(Rtn([bits], group), weight, bits).dense()
    for row, values in zip(weight.tolist(), found.tolist(), strict=True):
        for weight_, value, (expected, scale) in zip(row, values, round_by_hand(row, bits, group), strict=True):
            on_border = abs(abs(value - weight_) / scale - 0.5) < 1e-4
            assert abs(value - expected) <= 1e-6 * abs(expected) or on_border


def test_grid_by_example() -> None:
    weight = torch.tensor([[7.5, 0.5, 1.5, 2.5, -3.5, -7.5, 3.49, 0.0], [-1.0, 0.25, 0.1, 0.2, 0.0, 0.0, 0.0, 0.0]])
    found = quantize(Int4(group=4), weight, 4)
    assert found.integers.tolist() == [[7, 0, 2, 2, -4, -8, 3, 0], [-7, 2, 1, 2, 0, 0, 0, 0]]
    assert found.scales.tolist() == [[1, 1], [pytest.approx(1 / 7.5), 1]]
    found = quantize(Int8(group=4), 127 / 7 * weight, 8)
    assert found.integers.tolist() == [[127, 8, 25, 42, -59, -127, 59, 0], [-127, 32, 13, 25, 0, 0, 0, 0]]


def bound_error(weight: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """s/2, and what the largest weight of the group exceeds s · (2^(b−1) − ½) by, where s was rounded down."""
    largest = torch.cat([part.abs().amax(1, True).expand_as(part) for part in weight.double().split(group, 1)], 1)
    steps = scales.double().repeat_interleave(group, 1)[:, : weight.shape[1]]
    return steps / 2 + (largest - steps * (2 ** (bits - 1) - 0.5)).clamp(min=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@given(data=st.data())
@examples
def test_every_finite_half_is_within_half_a_step(dtype: torch.dtype, bits: int, data: st.DataObject) -> None:
    """Weights of any bit pattern, subnormal to largest: finite results, error at most s/2 and the last bit."""
    patterns = data.draw(st.lists(st.integers(0, 2**15 - 1), min_size=1, max_size=8))
    weight = torch.tensor([patterns], dtype=torch.int16).view(dtype)
    weight = torch.where(weight.isfinite(), weight, 0) * data.draw(st.sampled_from([1, -1]))
    found = quantize(Rtn([bits], 4), weight, bits)
    dense, bound = found.dense(), bound_error(weight, found.scales, bits, 4)
    assert dense.isfinite().all() and found.scales.isfinite().all() and (found.scales > 0).all()
    assert found.scales.dtype == dense.dtype == dtype
    error = (dense.double() - weight.double()).abs()
    assert (error <= 1.0001 * bound + torch.finfo(dtype).eps * dense.double().abs()).all()
    assert bound.max() <= 1.5001 * found.scales.max()


@given(st.lists(st.integers(0, 0x7F7FFFFF), min_size=1, max_size=8), st.sampled_from([16, 32]), widths, st.booleans())
@examples
def test_every_finite_float_gives_finite_results(
    patterns: list[int], stored_bits: int, bits: int, negative: bool
) -> None:
    weight = torch.tensor([patterns], dtype=torch.int32).view(torch.float32) * (-1 if negative else 1)
    found = quantize(Rtn([bits], 4), weight, bits, stored_bits)
    assert found.dense().isfinite().all() and (found.scales > 0).all() and found.scales.isfinite().all()
    bound = bound_error(weight, found.scales, bits, 4)
    error = (found.dense().double() - weight.double()).abs()
    assert (error <= 1.0001 * bound + 2**-23 * weight.double().abs() + 2**-149).all()
    assert bound.max() <= 1.5001 * found.scales.double().max()


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_smaller_than_any_scale_survive(dtype: torch.dtype) -> None:
    """max|w| / 127 would round to zero; the smallest positive scale keeps such weights exactly."""
    weight = torch.tensor([[1, 3, 127, 0, 100]], dtype=torch.int16).view(dtype)
    assert torch.equal(quantize(Int8(), weight, 8).dense(), weight)


@given(matrices([*HALVES, torch.float32], ordinary), widths, groups)
@examples
def test_what_is_scored_is_what_is_shipped(weight: Tensor, bits: int, group: int) -> None:
    """`dense()` is scales times integers."""
    found, (out, width) = quantize(Rtn([bits], group), weight, bits), weight.shape
    integers, scales = found.integers, found.scales.tolist()
    assert found.integer_bits == bits and found.zeros is None and found.quantized is found
    values = [[integers[i, j].item() * scales[i][j // group] for j in range(width)] for i in range(out)]
    assert torch.equal(found.dense(), torch.tensor(values, dtype=torch.float32).to(weight.dtype))
    assert integers.min() >= -(2 ** (bits - 1)) and integers.max() <= 2 ** (bits - 1) - 1


SHAPES = [
    (Int8(), 8, 19),
    (Int8(group=64), 8, 2 * 19),
    (Int8(Granularity.group, 25), 8, 3 * 19),
    (Int8(Granularity.tensor), 8, 1),
    (Int8(group=10**9), 8, 19),
    (Int4(), 4, 3 * 19),
    (Int4(group=1), 4, 75 * 19),
    (Rtn([3], 50), 3, 2 * 19),
]


@pytest.mark.parametrize(("compressor", "bits", "scales"), SHAPES)
@pytest.mark.parametrize(
    ("dtype", "stored_bits", "scale_bits"),
    [(torch.bfloat16, 16, 16), (torch.float16, 16, 16), (torch.float32, 32, 32), (torch.float32, 16, 16)],
)
def test_bits_count_every_integer_and_scale(
    compressor: Compressor, bits: int, scales: int, dtype: torch.dtype, stored_bits: int, scale_bits: int
) -> None:
    weight = torch.randn(19, 75, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = quantize(compressor, weight, bits, stored_bits)
    assert found.bits == 19 * 75 * bits + scales * scale_bits
    assert found.scales.numel() == scales and found.scales.element_size() * 8 == scale_bits
    assert 0 <= found.integers.abs().amax() - (2 ** (bits - 1) - 1) <= (0 if isinstance(compressor, Int8) else 1)
    # Half a step; the scale of 16 bits and the value may each be 2⁻⁹ off, of 7.5 steps.
    assert (found.dense().float() - weight.float()).abs().max() <= 0.53 * found.scales.float().max()


@given(matrices([torch.float32, *HALVES], ordinary))
@examples
def test_granularities_agree_where_they_must(weight: Tensor) -> None:
    out, width = weight.shape
    rows = quantize(Int8(), weight, 8).dense()
    assert torch.equal(rows, quantize(Int8(group=width), weight, 8).dense())
    assert torch.equal(rows, quantize(Int8(Granularity.group, width + 5), weight, 8).dense())
    assert torch.equal(rows, torch.cat([quantize(Int8(Granularity.tensor), row, 8).dense() for row in weight.split(1)]))
    assert torch.equal(quantize(Int4(3), weight, 4).dense(), quantize(Rtn(group=3), weight, 4).dense())
    whole = quantize(Int8(Granularity.tensor), weight, 8)
    assert torch.equal(whole.dense().flatten(), quantize(Int8(), weight.reshape(1, -1), 8).dense().flatten())
    assert whole.scales.shape == (1, 1) and whole.integers.shape == (out, width)


@pytest.mark.parametrize("compressor", [Int8(), Int8(Granularity.tensor), Int4(), Rtn()])
def test_zeros_stay_zero(compressor: Compressor) -> None:
    weight = torch.zeros(3, 40)
    weight[0, 39] = -2.0
    for level in compressor.offer(component_of(weight)).levels:
        found = compressor.compress(weight, level, Context(component_of(weight)))
        assert isinstance(found, QuantizedMatrix)
        assert torch.equal(found.dense() == 0, weight == 0)
        assert abs(found.dense()[0, 39] + 2) <= (0 if isinstance(compressor, Int8) else 0.50001 * found.scales[0, -1])


def test_every_level_gives_its_own_width() -> None:
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).half()
    component = component_of(weight)
    compressor = Rtn(list(range(2, 9)))
    for bits, level in zip(range(2, 9), compressor.offer(component).levels, strict=True):
        for amount in (level, level + 5e-7, level - 5e-7):
            found = compressor.compress(weight, amount, Context(component))
            assert found.bits == 160 * bits + 8 * 16
