"""Half-quadratic quantization against loops in double precision, and against its own beginning."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.contracts import Component, Context
from compressor.errors import ConfigError
from compressor_plugins.quantization.hqq import FloatZerosWeight, Hqq

NAME = "model.layers.0.mlp.up_proj"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
examples = settings(max_examples=30, deadline=None)


def component_of(weight: Tensor) -> Component:
    out, width = weight.shape
    return Component(NAME, "up", 0, (out, width), weight.element_size() * 8)


def quantize(compressor: Hqq, weight: Tensor, bits: int = 4) -> FloatZerosWeight:
    component = component_of(weight)
    return compressor.compress(weight, 1 - bits / component.stored_bits, Context(component))


def objective(weights: list[float], values: list[float], norm: float) -> float:
    return sum(abs(w - value) ** norm for w, value in zip(weights, values, strict=True))


def by_hand(weights: list[float], bits: int, options: Hqq) -> tuple[float, float]:
    """Σ|w − ŵ|^p at the start and at its least, for one group: the formula in loops, s and z not rounded."""
    top, beta, errors = 2**bits - 1, options.beta, []
    scale = (max(0.0, *weights) - min(0.0, *weights)) / top or 1.0
    zero = -min(0.0, *weights) / scale
    for _ in range(options.iterations + 1):
        integers = [max(0, min(top, round(w / scale + zero))) for w in weights]
        values = [scale * (q - zero) for q in integers]
        errors.append(objective(weights, values, options.lp_norm))
        moved = []
        for w, q, value in zip(weights, integers, values, strict=True):
            x = w - value
            shrunk = max(0.0, abs(x) - abs(x) ** (options.lp_norm - 1) / beta) if x else 0.0
            moved.append(q - (w - math.copysign(shrunk, x)) / scale)
        zero, beta = sum(moved) / len(moved), beta * options.kappa
    return errors[0], min(errors)


OPTIONS = [Hqq(), Hqq(lp_norm=0.5, beta=1.0, kappa=1.2, iterations=7), Hqq(lp_norm=1.0, beta=100.0, kappa=1.0)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [0.02, 1.0, 30.0])
def test_search_is_the_formula(options: Hqq, bits: int, size: float) -> None:
    """The least objective of each group, up to what rounding s and z to 32 bits turns on borders of integers."""
    weight = size * torch.randn(6, 75, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[0] = weight[0].abs()
    group, found = 32, []
    dense = quantize(Hqq([bits], group, options.lp_norm, options.beta, options.kappa, options.iterations), weight, bits)
    for row, values in zip(weight.tolist(), dense.dense().tolist(), strict=True):
        for start in range(0, 75, group):
            weights, got = row[start : start + group], values[start : start + group]
            first, least = by_hand(weights, bits, options)
            reached = objective(weights, got, options.lp_norm)
            assert reached <= first * 1.001
            found.append(reached / least)
    # A weight on a border of two integers may send a search elsewhere.
    assert sum(abs(ratio - 1) < 2e-3 for ratio in found) >= 0.8 * len(found) and max(found) < 1.1


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    out, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    values = st.floats(-8, 8).map(lambda value: round(value, 3))
    flat = draw(st.lists(values, min_size=out * width, max_size=out * width))
    return torch.tensor(flat, dtype=torch.float64).to(draw(st.sampled_from(DTYPES))).view(out, width)


@given(
    matrices(), st.integers(2, 8), st.integers(1, 12), st.sampled_from([0.4, 0.7, 1.0]), st.sampled_from([0.5, 10.0])
)
@examples
def test_no_group_is_worse_than_round_to_nearest(
    weight: Tensor, bits: int, group: int, norm: float, beta: float
) -> None:
    """In its own objective, on the very numbers that are used, against the start with a float zero point."""
    found = quantize(Hqq([bits], group, norm, beta), weight, bits)
    start = -(2 ** (bits - 1))
    for row, values, scales in zip(weight, found.dense(), found.scales, strict=True):
        for index, scale in enumerate(scales):
            part = slice(index * group, (index + 1) * group)
            # The same grid before the search: s as stored, z = start − min / s rounded to the dtype of s.
            weights, s = row[part].double(), scale.double()
            zero = (start - weights.min().clamp(max=0) / s).clamp(start, -start - 1).to(scale.dtype).double()
            integers = (weights / s + zero).round().clamp(start, -start - 1)
            plain = (s * (integers - zero)).to(weight.dtype).double()
            before, after = ((weights - v).abs().pow(norm).sum() for v in (plain, values[part].double()))
            # A tie of two integers may turn in float32, and 0^p magnifies last bits.
            assert after <= before + 1e-2 * s**norm + len(weights) * (1e-6 * weights.abs().max()) ** norm


@given(matrices(), st.integers(2, 8), st.integers(1, 12))
@examples
def test_dense_is_scales_times_integers_less_zero_points(weight: Tensor, bits: int, group: int) -> None:
    found = quantize(Hqq([bits], group), weight, bits)
    width, compute = weight.shape[1], torch.float64 if weight.dtype == torch.float64 else torch.float32
    scales, zeros = (part.to(compute).repeat_interleave(group, 1)[:, :width] for part in (found.scales, found.zeros))
    assert torch.equal(found.dense(), (scales * (found.integers.to(compute) - zeros)).to(weight.dtype))
    assert found.integers.min() >= -(2 ** (bits - 1)) and found.integers.max() <= 2 ** (bits - 1) - 1
    assert found.zeros.dtype == found.scales.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@given(data=st.data())
@examples
def test_every_finite_weight_stays_finite(dtype: torch.dtype, data: st.DataObject) -> None:
    width, integer = (31, torch.int32) if dtype == torch.float32 else (15, torch.int16)
    patterns = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=8))
    weight = torch.tensor([patterns], dtype=integer).view(dtype)
    weight = torch.where(weight.isfinite(), weight, 0) * data.draw(st.sampled_from([1, -1]))
    bits = data.draw(st.integers(2, 8))
    found = quantize(Hqq([bits], 4), weight, bits)
    assert found.dense().isfinite().all() and found.scales.isfinite().all() and found.zeros.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_numbers_do_not_overflow(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    weight = torch.tensor([[largest, -largest, 0, largest / 2], [largest, largest, 1, -largest / 3]], dtype=dtype)
    for bits in (2, 4, 8):
        found = quantize(Hqq([bits], 4), weight, bits)
        assert found.dense().isfinite().all() and found.zeros.isfinite().all()


def test_a_short_last_group_is_a_group_of_its_own() -> None:
    weight = torch.randn(3, 75, generator=torch.Generator().manual_seed(0)) + 0.5
    whole = quantize(Hqq(group=32), weight).dense()
    assert torch.equal(whole[:, 64:], quantize(Hqq(group=64), weight[:, 64:]).dense())
    assert torch.equal(whole[1:2], quantize(Hqq(group=32), weight[1:2]).dense())


def test_bits_count_float_zero_points() -> None:
    weight = torch.randn(19, 75, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert quantize(Hqq(), weight).bits == 19 * 75 * 4 + 19 * 2 * (16 + 16)
    assert quantize(Hqq([3], 25), weight, 3).bits == 19 * 75 * 3 + 19 * 3 * (16 + 16)
    assert quantize(Hqq(), weight.float()).bits == 19 * 75 * 4 + 19 * 2 * (32 + 32)


def test_rows_of_zeros_stay_zero() -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    assert (quantize(Hqq(), weight).dense()[1] == 0).all()
    assert torch.equal(quantize(Hqq(), 0 * weight.abs()).dense(), 0 * weight.abs())


def test_outliers_count_less_than_with_squares() -> None:
    """Mean error is lower than of round to nearest with an integer zero point, for a bias is taken out."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)) ** 3 + 0.3
    dense, none = quantize(Hqq([2]), weight, 2).dense(), quantize(Hqq([2], iterations=1), weight, 2).dense()
    assert (weight - dense).abs().pow(0.7).mean() < (weight - none).abs().pow(0.7).mean()


@pytest.mark.parametrize(
    ("compressor", "line"),
    [
        (Hqq(group=0), "`compressor.hqq.group` must be at least 1, got 0; give for example 32"),
        (
            Hqq([4, 9]),
            "`compressor.hqq.bits` must be different widths from 2 to 8, got [4, 9]; give for example [3,4,8]",
        ),
        (Hqq(lp_norm=1.5), "`compressor.hqq.lp_norm` must be in (0, 1], got 1.5; give for example 0.7"),
        (Hqq(lp_norm=math.nan), "`compressor.hqq.lp_norm` must be in (0, 1], got nan; give for example 0.7"),
        (Hqq(beta=0.0), "`compressor.hqq.beta` must be positive and finite, got 0.0; give for example 10"),
        (Hqq(kappa=0.9), "`compressor.hqq.kappa` must be finite and at least 1, got 0.9; give for example 1.01"),
        (Hqq(iterations=0), "`compressor.hqq.iterations` must be from 1 to 10000, got 0; give for example 20"),
        (
            Hqq(iterations=2**31),
            "`compressor.hqq.iterations` must be from 1 to 10000, got 2147483648; give for example 20",
        ),
    ],
)
def test_bad_option_is_one_line(compressor: Hqq, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        compressor.offer(component_of(torch.ones(2, 2)))
    assert str(error.value) == line
