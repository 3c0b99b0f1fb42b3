"""NormalFloat: its levels from the normal distribution, the nearest of them by hand, scales in 8 bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from compressor.contracts import Component, Context
from compressor.errors import ConfigError
from compressor_plugins.quantization.nf4 import LEVELS, Nf4, NormalFloatWeight, QuantizedScales, quantize_scales

NAME = "model.layers.0.mlp.up_proj"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
examples = settings(max_examples=40, deadline=None)


def component_of(weight: Tensor, stored_bits: int | None = None) -> Component:
    out, width = weight.shape
    return Component(NAME, "up", 0, (out, width), stored_bits or weight.element_size() * 8)


def quantize(compressor: Nf4, weight: Tensor, stored_bits: int | None = None) -> NormalFloatWeight:
    component = component_of(weight, stored_bits)
    return compressor.compress(weight, 1 - 4 / component.stored_bits, Context(component))


def test_levels_are_quantiles() -> None:
    """Evenly spaced probabilities on either side of zero, the outermost half-way between 1/32 and 1/30 from the end."""
    tail = 1 - (1 / 32 + 1 / 30) / 2
    positive, negative = (norm.ppf(np.linspace(tail, 0.5, count))[:-1] for count in (9, 8))
    quantiles = np.sort([*-negative, 0, *positive]) / positive.max()
    assert np.abs(quantiles - LEVELS).max() < 1e-6
    assert sorted(LEVELS) == list(LEVELS) and len(LEVELS) == 16


@st.composite
def matrices(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> Tensor:
    out, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    values = st.floats(-8, 8).map(lambda value: round(value, 3))
    flat = draw(st.lists(values, min_size=out * width, max_size=out * width))
    weight = torch.tensor(flat, dtype=torch.float64).to(draw(st.sampled_from(dtypes))).view(out, width)
    return weight.T if draw(st.booleans()) else weight


groups = st.integers(1, 12)


@given(matrices([torch.float64]), groups)
@examples
def test_every_weight_takes_its_nearest_level(weight: Tensor, group: int) -> None:
    found = quantize(Nf4(group, double_quant=False), weight).dense()
    for row, values in zip(weight.tolist(), found.tolist(), strict=True):
        for start in range(0, len(row), group):
            scale = max(map(abs, row[start : start + group]))
            for weight_, value in zip(row[start : start + group], values[start : start + group], strict=True):
                nearest = min(abs(weight_ - scale * level) for level in LEVELS)
                assert abs(abs(weight_ - value) - nearest) <= 2e-7 * scale
                assert any(abs(value - scale * level) <= 2e-7 * scale for level in LEVELS)


def rebuild_scales(scales: Tensor | QuantizedScales, largest: float) -> Tensor:
    """The scale of each group; those in 8 bits from their codes, steps and mean, in loops and float32."""
    if not isinstance(scales, QuantizedScales):
        return scales
    codes, steps, mean = scales.codes, scales.steps, scales.mean
    flat = [(mean + steps[index // 256] * code).item() for index, code in enumerate(codes.flatten())]
    return torch.tensor(flat, dtype=torch.float64).clamp(max=largest).float().view(codes.shape)


@given(matrices(), groups, st.booleans())
@examples
def test_dense_is_scales_times_levels(weight: Tensor, group: int, double_quant: bool) -> None:
    found = quantize(Nf4(group, double_quant), weight)
    assert isinstance(found.scales, QuantizedScales) == double_quant
    assert found.indices.min() >= 0 and found.indices.max() <= 15
    scales = rebuild_scales(found.scales, torch.finfo(weight.dtype).max)
    compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    spread = scales.to(compute).repeat_interleave(group, 1)[:, : weight.shape[1]]
    levels = torch.tensor(LEVELS, dtype=compute)[found.indices.int()]
    assert torch.equal(found.dense(), (spread * levels).to(weight.dtype))


def test_levels_are_nearest_by_the_scale_that_is_stored() -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) ** 3
    found = quantize(Nf4(16), weight)
    scales = rebuild_scales(found.scales, 1e30).repeat_interleave(16, 1)
    nearest = (weight[..., None] - scales[..., None] * torch.tensor(LEVELS)).abs().amin(-1)
    assert torch.allclose((weight - found.dense()).abs(), nearest, atol=1e-6)
    assert (scales.view(40, 6, 16)[..., 0] < weight.view(40, 6, 16).abs().amax(-1) - 1e-3).any()


@given(matrices(), groups)
@examples
def test_errors_are_bounded(weight: Tensor, group: int) -> None:
    """By half the widest gap of levels, or by what the rounded scale does not reach."""
    for double_quant in (False, True):
        found = quantize(Nf4(group, double_quant), weight)
        scales = rebuild_scales(found.scales, 1e30)
        for row, values, used in zip(weight.double(), found.dense().double(), scales.double(), strict=True):
            for index, scale in enumerate(used.tolist()):
                part = slice(index * group, (index + 1) * group)
                largest = row[part].abs().max().item()
                bound = max((LEVELS[1] - LEVELS[0]) / 2 * abs(scale), largest - scale)
                slack = torch.finfo(weight.dtype).eps * abs(scale) + 1e-6 * largest + 1e-12
                assert ((row[part] - values[part]).abs() <= bound + slack).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@given(data=st.data())
@examples
def test_every_finite_weight_stays_finite(dtype: torch.dtype, data: st.DataObject) -> None:
    """Any bit pattern, one scale at the largest number beside others that vanish."""
    width, integer = (31, torch.int32) if dtype == torch.float32 else (15, torch.int16)
    patterns = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=12))
    weight = torch.tensor([patterns], dtype=integer).view(dtype)
    weight = torch.where(weight.isfinite(), weight, 0) * data.draw(st.sampled_from([1, -1]))
    for double_quant in (False, True):
        dense = quantize(Nf4(4, double_quant), weight, data.draw(st.sampled_from([16, 8 * dtype.itemsize]))).dense()
        assert dense.isfinite().all() and ((dense.double() - weight.double()).abs() <= 1.01 * weight.abs().max()).all()


def test_largest_numbers_do_not_overflow() -> None:
    for dtype in DTYPES:
        largest = torch.finfo(dtype).max
        weight = torch.tensor([[largest, -largest, 0, largest / 2], [1, -2, 3, 0]], dtype=dtype)
        for double_quant in (False, True):
            assert quantize(Nf4(4, double_quant), weight).dense().isfinite().all()


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=600))
@examples
def test_scales_in_eight_bits_are_within_half_a_step(values: list[float]) -> None:
    scales = torch.tensor([values])
    found = quantize_scales(scales)
    assert len(found.steps) == -(-len(values) // 256) and found.codes.shape == scales.shape
    mean = float(np.float32(np.mean(np.array(values, np.float64))))
    assert found.mean.item() == pytest.approx(mean, rel=1e-6)
    for block, step in enumerate(found.steps.tolist()):
        part = slice(block * 256, (block + 1) * 256)
        deviations = [value - mean for value in values[part]]
        widest = max(map(abs, deviations))
        assert step == pytest.approx(widest / 127 if widest > 1e-5 else step, rel=1e-3)
        error = (found.decode(torch.float32)[0, part] - scales[0, part]).abs().max().item()
        assert error <= 0.501 * step + 1e-5 if widest > 1e-5 else error <= 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [False, True])
def test_bits_count_all_that_is_stored(dtype: torch.dtype, double_quant: bool) -> None:
    weight = torch.randn(300, 75, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = quantize(Nf4(double_quant=double_quant), weight)
    scales = 600 * 8 + 3 * 32 + 32 if double_quant else 600 * min(32, dtype.itemsize * 8)
    assert found.bits == 300 * 75 * 4 + scales


@pytest.mark.parametrize("double_quant", [False, True])
def test_zeros_stay_zero(double_quant: bool) -> None:
    weight = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[1], weight[2, ::3] = 0, 0
    assert (quantize(Nf4(double_quant=double_quant), weight).dense()[weight == 0] == 0).all()
    nothing = quantize(Nf4(double_quant=double_quant), 0 * weight.abs())
    assert torch.equal(nothing.dense(), 0 * weight.abs()) and (nothing.indices == LEVELS.index(0)).all()


@given(matrices(), groups)
@examples
def test_what_lies_on_the_levels_stays(weight: Tensor, group: int) -> None:
    compressor = Nf4(group, double_quant=False)
    once = quantize(compressor, weight).dense()
    assert torch.equal(quantize(compressor, once).dense(), once)


def test_a_group_of_zero_is_one_line() -> None:
    with pytest.raises(ConfigError) as error:
        Nf4(group=0).offer(component_of(torch.ones(2, 2)))
    assert str(error.value) == "`compressor.nf4.group` must be at least 1, got 0; give for example 32"
