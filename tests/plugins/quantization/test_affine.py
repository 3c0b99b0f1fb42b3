"""Grids with zero points and clipped ranges against naive loops."""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.contracts import Component, Compressor, Context, QuantizedMatrix
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.rounding import FACTORS

NAME = "model.layers.0.mlp.up_proj"
HALVES = [torch.bfloat16, torch.float16]
examples = settings(max_examples=40, deadline=None)


def quantize(compressor: Compressor, weight: Tensor, stored_bits: int | None = None) -> QuantizedMatrix:
    out, width = weight.shape
    component = Component(NAME, "up", 0, (out, width), stored_bits or weight.element_size() * 8)
    found = compressor.compress(weight, 1 - 4 / component.stored_bits, Context(component))
    assert isinstance(found, QuantizedMatrix)
    return found


def by_hand(weights: list[float], factor: float = 1.0) -> tuple[list[float], float]:
    """(values, scale) of one group of 4 bits with a zero point, in double precision, scales not rounded."""
    low, high = factor * min(0.0, *weights), factor * max(0.0, *weights)
    scale = (high - low) / 15 or 1.0
    zero = round(-low / scale)
    return [scale * (max(0, min(15, round(w / scale + zero))) - zero) for w in weights], scale


def matrices(dtypes: list[torch.dtype]) -> st.SearchStrategy[Tensor]:
    values = st.floats(-8, 8).map(lambda value: round(value, 3))

    @st.composite
    def draw_matrix(draw: st.DrawFn) -> Tensor:
        out, width = draw(st.integers(1, 4)), draw(st.integers(2, 9))
        flat = draw(st.lists(values, min_size=out * width, max_size=out * width))
        weight = torch.tensor(flat, dtype=torch.float64).to(draw(st.sampled_from(dtypes))).view(out, width)
        weight = weight.abs() if draw(st.booleans()) else weight
        return weight.T if draw(st.booleans()) else weight

    return draw_matrix()


groups = st.integers(1, 12)
GRIDS = [Int4(symmetric=symmetric, clip=clip) for symmetric in (True, False) for clip in (True, False)]


@given(matrices([torch.float64]), groups)
@examples
def test_zero_points_are_the_formula(weight: Tensor, group: int) -> None:
    """Up to the rounding of scales to 32 bits, which may turn what is on the border of two integers."""
    found = quantize(Int4(group, symmetric=False), weight).dense()
    for row, values in zip(weight.tolist(), found.tolist(), strict=True):
        for start in range(0, len(row), group):
            weights, got = row[start : start + group], values[start : start + group]
            expected, scale = by_hand([*weights, 0.0])
            border = -min(0.0, *weights, 0.0) / scale % 1
            for weight_, value, wanted in zip(weights, got, expected, strict=False):
                at_border = abs(abs(value - weight_) / scale - 0.5) < 1e-4 or abs(border - 0.5) < 1e-4
                assert abs(value - wanted) <= 1e-6 * max(map(abs, weights)) or at_border


def test_zero_point_by_example() -> None:
    weight = torch.tensor([[-3.0, 12.0, 0.0, 4.4], [0.0, 15.0, 1.0, 2.5], [-15.0, -1.5, -0.4, -2.5]])
    found = quantize(Int4(4, symmetric=False), weight)
    assert found.scales.tolist() == [[1], [1], [1]] and found.zeros.tolist() == [[-5], [-8], [7]]
    assert found.integers.tolist() == [[-8, 7, -5, -1], [-8, 7, -7, -6], [-8, 6, 7, 4]]
    # Ties round to even as q is, not as w / s is: −2.5 + 7 is 4.5, and becomes 4.
    assert found.dense().tolist() == [[-3, 12, 0, 4], [0, 15, 1, 2], [-15, -1, 0, -3]]


@given(matrices([torch.float32, *HALVES]), groups, st.booleans())
@examples
def test_zero_point_weights_are_rebuilt_from_their_integers(weight: Tensor, group: int, clip: bool) -> None:
    found = quantize(Int4(group, symmetric=False, clip=clip), weight)
    integers, scales, zeros, (out, width) = found.integers, found.scales, found.zeros, weight.shape
    assert found.quantized is found and found.integer_bits == 4 and zeros is not None
    assert zeros.shape == scales.shape and -8 <= zeros.min() and zeros.max() <= 7
    values = [
        [scales[i, j // group].item() * (integers[i, j] - zeros[i, j // group]).item() for j in range(width)]
        for i in range(out)
    ]
    assert torch.equal(found.dense(), torch.tensor(values, dtype=torch.float32).to(weight.dtype))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@given(data=st.data())
@examples
def test_every_finite_weight_stays_finite_and_near(dtype: torch.dtype, data: st.DataObject) -> None:
    """Weights of any bit pattern: half a step and what rounding the scale cut off, a step more next to the largest."""
    width, integer = (31, torch.int32) if dtype == torch.float32 else (15, torch.int16)
    patterns = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=2, max_size=8))
    weight = torch.tensor([patterns], dtype=integer).view(dtype)
    signs = torch.tensor(data.draw(st.lists(st.sampled_from([1, -1]), min_size=len(patterns), max_size=len(patterns))))
    weight = torch.where(weight.isfinite(), weight, 0) * signs
    for compressor in (Int4(4, symmetric=False), Int4(4, symmetric=False, clip=True), Int4(4, clip=True)):
        found = quantize(compressor, weight, data.draw(st.sampled_from([16, weight.element_size() * 8])))
        dense, scales = found.dense(), found.scales.double()
        assert dense.dtype == dtype and dense.isfinite().all() and scales.isfinite().all() and (scales > 0).all()
        if compressor.clip:
            continue
        for start, scale in zip(range(0, len(patterns), 4), scales[0].tolist(), strict=True):
            group, error = weight[0, start : start + 4].double(), (dense - weight.double())[0, start : start + 4].abs()
            cut = max(0.0, max(0.0, group.max().item()) - min(0.0, group.min().item()) - 15 * scale)
            steps = 0.5 if group.abs().max() < 0.98 * torch.finfo(dtype).max else 1.5
            slack = torch.finfo(dtype).eps * group.abs().max() + torch.finfo(dtype).smallest_normal * 2**-6
            assert (error <= steps * 1.0001 * scale + cut + slack).all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [False, True])
def test_largest_numbers_do_not_overflow(dtype: torch.dtype, clip: bool) -> None:
    """The range between them is twice what there is a number for."""
    largest = torch.finfo(dtype).max
    weight = torch.tensor([[largest, -largest, 0, largest / 2], [largest, largest, 1, -largest / 3]], dtype=dtype)
    dense = quantize(Int4(4, symmetric=False, clip=clip), weight).dense()
    # Scales of 64-bit weights are 32 bits wide, and end there.
    reach = torch.finfo(torch.float32).max if dtype == torch.float64 else largest
    assert dense.isfinite().all() and (dense.double() / reach).abs().amax() > 0.4


@given(matrices([torch.float64, torch.float32, *HALVES]), groups, st.booleans())
@examples
def test_clipping_never_adds_squared_error_to_a_group(weight: Tensor, group: int, symmetric: bool) -> None:
    def errors(clip: bool) -> Tensor:
        square = (quantize(Int4(group, symmetric, clip), weight).dense().double() - weight.double()).square()
        return torch.stack([part.sum(1) for part in square.split(group, 1)])

    assert (errors(True) <= errors(False) * (1 + 1e-5) + 1e-30).all()


def test_clipping_finds_the_best_factor_of_the_grid() -> None:
    """A group with an outlier, all factors by hand, at 64 bits."""
    weights = [*torch.randn(31, generator=torch.Generator().manual_seed(1)).tolist(), 4.5]
    weight = torch.tensor([weights], dtype=torch.float64)

    def error(values: list[float]) -> float:
        return sum((value - weight_) ** 2 for value, weight_ in zip(values, weights, strict=True))

    def shrink(factor: float) -> list[float]:
        scale = factor * 4.5 / 7.5
        return [scale * max(-8, min(7, round(w / scale))) for w in weights]

    for symmetric, values in ((True, shrink), (False, lambda factor: by_hand(weights, factor)[0])):
        least = min(error(values(factor)) for factor in FACTORS)
        found = quantize(Int4(32, symmetric, clip=True), weight).dense()[0].tolist()
        assert math.isclose(error(found), least, rel_tol=1e-5) and least < 0.97 * error(values(1.0))
    assert FACTORS[0] == 1 and FACTORS[-1] == 0.5 and len(FACTORS) == 21


def lies_halfway(weight: Tensor, group: int) -> bool:
    """Whether a zero point is a tie: rounding errors then decide on which side the ends of the range come to lie."""
    for part in weight.split(group, dim=1):
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if ((15 * low / (low - high) % 1 - 0.5).abs() < 1e-4).any():
            return True
    return False


@given(matrices([torch.float64]), groups)
@example(torch.tensor([[1.0, -0.9]], dtype=torch.float64), 2)
@examples
def test_what_lies_on_the_grid_stays(weight: Tensor, group: int) -> None:
    """Quantizing again changes nothing but last bits: the ends of a range come to lie on the ends of the grid."""
    assume(not lies_halfway(weight, group))
    once = quantize(Int4(group, symmetric=False), weight).dense()
    again = quantize(Int4(group, symmetric=False), once).dense()
    assert (again - once).abs().max() <= 1e-5 * once.abs().max()


@pytest.mark.parametrize("compressor", GRIDS)
def test_zeros_stay_zero(compressor: Int4) -> None:
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[1], weight[2, ::3] = 0, 0
    dense = quantize(compressor, weight).dense()
    assert (dense[weight == 0] == 0).all()
    assert torch.equal(quantize(compressor, 0 * weight).dense(), 0 * weight.abs())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("dtype", "scale_bits"), [(torch.float32, 32), (torch.bfloat16, 16), (torch.float64, 32)])
def test_bits_count_zero_points(dtype: torch.dtype, scale_bits: int, clip: bool) -> None:
    weight = torch.randn(19, 75, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = quantize(Int4(symmetric=False, clip=clip), weight)
    assert found.bits == 19 * 75 * 4 + 19 * 3 * (scale_bits + 4)
    assert (found.integers.amin(), found.integers.amax()) == (-8, 7)


def test_positive_weights_gain_from_a_zero_point() -> None:
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    error = {symmetric: (quantize(Int4(symmetric=symmetric), weight).dense() - weight).std() for symmetric in (0, 1)}
    assert error[0] < 0.55 * error[1]


def test_clipping_is_off_unless_asked_for() -> None:
    assert Int4() == Int4(32, True, False)
