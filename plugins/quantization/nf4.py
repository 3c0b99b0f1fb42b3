"""4-bit NormalFloat: weights on 16 levels, with scales of 8 bits or in floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    Offer,
    Storage,
    join_groups,
    split_groups,
    working_dtype,
)

from ..options import check_option
from ..weight_checks import check_finite
from .options import choose_bits, offer_bits
from .rounding import fit_scales, scales_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""From appendix E of the paper: quantiles of the normal distribution divided by the largest one; one level is 0."""
BLOCK = 256
"""How many quantized scales share a step."""


@dataclass
class Nf4(Compressor):
    """NormalFloat: 16 levels at quantiles of a normal distribution, so that all levels are used about equally often.

    s = max|w|, i = the level nearest to w / s, ŵ = s · LEVELS[i]. Each `group` of neighbours along `in` of `[out, in]`
    has one s; the last group of a row may be shorter. With `double_quant` a scale takes 8 bits: with m the mean of all
    scales of the matrix and d = max|s − m| / 127 in a block of 256 scales,

        c = round((s − m) / d),  s̃ = m + d · c,

    c is int8, d and m are float32. Without it s is as wide as the checkpoint's weights, at most 32 bits. Levels are
    chosen with the stored scale s̃. One level is 0, so zeros stay zero. No weight changes by more than half the widest
    gap, 0.152 |s̃|, or by s − s̃ if that is more. The amount is 1 − 4 / stored bits. Scales are stored in addition, and
    counted.

    Source: Dettmers et al., QLoRA, NeurIPS 2023 (arXiv 2305.14314). QLoRA stores scales as 8-bit floats, here they are
    evenly spaced integers; it chooses levels with the scale before rounding.
    """

    group: int = 64
    double_quant: bool = True

    name: ClassVar[str] = "nf4"
    stored_as: ClassVar[Storage] = Storage.other

    def check_options(self) -> None:
        check_option(self, "group", self.group >= 1, "at least 1", "32")

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return offer_bits(self, [4], component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> NormalFloatWeight:
        component, dtype = context.component, weight.dtype
        choose_bits(self, amount, component)
        groups = split_groups(weight.to(working_dtype(dtype)), len(weight), self.group)
        largest = groups.abs().amax(-1)
        check_finite(largest, component)
        scales: Tensor | QuantizedScales
        if self.double_quant:
            scales = quantize_scales(largest)
            indices = find_nearest(groups, scales.decode(dtype))
        else:
            scales = fit_scales(largest, 1, scales_dtype(weight, component), dtype)
            indices = find_nearest(groups, scales)
        return NormalFloatWeight(join_groups(indices, weight.shape), scales, self.group, dtype)


@dataclass(frozen=True)
class QuantizedScales:
    """8-bit scales s = min(m + d · c, largest finite number of the weight's dtype and of float32).

    `codes` c `[out, group]` int8 in ±127; `steps` d `[block]` float32, one for each `BLOCK` codes in row-major order
    (the last block may be shorter); `mean` m, one float32 for the matrix.
    """

    codes: Tensor
    steps: Tensor
    mean: Tensor

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.steps.nbytes + self.mean.nbytes

    def decode(self, dtype: torch.dtype) -> Tensor:
        import torch

        deviations = self.steps[None, :, None] * split_groups(self.codes, 1, BLOCK)
        largest = min(torch.finfo(part).max for part in (dtype, torch.float32))
        return (self.mean + join_groups(deviations, self.codes.shape)).clamp(max=largest)


def quantize_scales(scales: Tensor) -> QuantizedScales:
    """c = round((s − m) / d), half to even; m is the mean of all scales, d = max|s − m| / 127 in a block."""
    import torch

    scales = scales.clamp(max=torch.finfo(torch.float32).max).float()
    mean = scales.double().mean().float()
    deviations = split_groups(scales - mean, 1, BLOCK)
    steps = fit_scales(deviations.abs().amax(-1), 127, torch.float32, torch.float32)
    codes = (deviations / steps[..., None]).round().clamp(-127, 127).to(torch.int8)
    return QuantizedScales(join_groups(codes, scales.shape), steps[0], mean)


@dataclass(frozen=True)
class NormalFloatWeight(CompressedWeight):
    """ŵ = s · LEVELS[i] with one scale s for each group of weights.

    `indices` i `[out, in]` int8 in [0, 15]; `scales` s `[out, group]`, floats or 8-bit; `group` neighbours along `in`
    share a scale, the last group of a row may be shorter.
    """

    indices: Tensor
    scales: Tensor | QuantizedScales
    group: int
    dtype: torch.dtype

    def dense(self) -> Tensor:
        compute = working_dtype(self.dtype)
        scales = self.scales.decode(self.dtype) if isinstance(self.scales, QuantizedScales) else self.scales
        levels = self.indices.new_tensor(LEVELS, dtype=compute)[self.indices.int()]
        values = scales.to(compute)[..., None] * split_groups(levels, len(levels), self.group)
        return join_groups(values, self.indices.shape).to(self.dtype)

    @property
    def bits(self) -> int:
        return 4 * self.indices.numel() + 8 * self.scales.nbytes


def find_nearest(groups: Tensor, scales: Tensor) -> Tensor:
    """Index of the level nearest to w / s, the lower one in a tie; the index of level 0 where s is 0."""
    import torch

    levels = groups.new_tensor(LEVELS)
    scales = scales.to(groups.dtype)[..., None]
    ratios = torch.where(scales == 0, 0, groups / scales).contiguous()
    return torch.bucketize(ratios, (levels[1:] + levels[:-1]) / 2).to(torch.int8)
