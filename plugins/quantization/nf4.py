"""4-bit NormalFloat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, join_groups, split_groups, working_dtype

from .normal_float import NormalFloatWeight, QuantizedScales, find_nearest, quantize_scales
from .options import check_group, choose_bits, offer_bits
from .rounding import check_finite, fit_scales, scales_dtype

if TYPE_CHECKING:
    from torch import Tensor


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

    def offer(self, component: Component) -> Offer:
        check_group(self.name, self.group, least=1)
        return offer_bits(self.name, [4], component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> NormalFloatWeight:
        component, dtype = context.component, weight.dtype
        choose_bits(self.name, self.offer(component), amount, component)
        group = min(self.group, weight.shape[1])
        groups = split_groups(weight.to(working_dtype(dtype)), len(weight), group)
        largest = groups.abs().amax(-1)
        check_finite(largest, component)
        scales: Tensor | QuantizedScales
        if self.double_quant:
            scales = quantize_scales(largest)
            indices = find_nearest(groups, scales.decode(dtype))
        else:
            scales = fit_scales(largest, 1, scales_dtype(weight, component), dtype)
            indices = find_nearest(groups, scales)
        return NormalFloatWeight(join_groups(indices, weight.shape), scales, group, dtype)
