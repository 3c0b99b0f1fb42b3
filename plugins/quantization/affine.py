"""Weights on an integer grid with a zero point: for ranges that do not lie alike on both sides of zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.contracts import Component, CompressedWeight, Grid

from .clip_search import search_clip
from .symmetric import (
    check_finite,
    fit_scales,
    join_groups,
    scales_dtype,
    split_groups,
    working_dtype,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class AffineWeight(CompressedWeight):
    """ŵ = s · (q − z) with one scale s and one zero point z for each group of weights.

    `integers` q `[out, in]` int8 in [−2^(b−1), 2^(b−1) − 1]; `scales` s and `zeros` z `[out, group]`; z is either an
    integer of the same range, packed in b bits like q, or a float as wide as s. Being centred costs nothing, for only
    q − z counts, and a float z near 0 loses little to rounding. `group` neighbours along `in` share s and z, the last
    group of a row may be shorter; `bits_each` is b.
    """

    integers: Tensor
    scales: Tensor
    zeros: Tensor
    group: int
    bits_each: int
    dtype: torch.dtype

    def dense(self) -> Tensor:
        groups = split_groups(self.integers, len(self.scales), self.group)
        return join_groups(decode_affine(groups, self.scales, self.zeros, self.dtype), self.integers)

    @property
    def bits(self) -> int:
        zero = self.zeros.itemsize * 8 if self.zeros.is_floating_point() else self.bits_each
        return self.integers.numel() * self.bits_each + self.scales.numel() * (self.scales.itemsize * 8 + zero)

    @property
    def grid(self) -> Grid | None:
        """None for zero points between the integers, which formats of integers do not hold."""
        if self.zeros.is_floating_point():
            return None
        return Grid(self.integers, self.scales, self.bits_each, self.group, self.zeros)


def decode_affine(integers: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """ŵ `[rows, group, weight]` in `dtype`, of q alike and s, z `[rows, group]`."""
    compute = working_dtype(dtype)
    return (scales.to(compute)[..., None] * (integers.to(compute) - zeros.to(compute)[..., None])).to(dtype)


def find_range(groups: Tensor, component: Component) -> tuple[Tensor, Tensor]:
    """min(w, 0) and max(w, 0) `[rows, group]` of `groups` `[rows, group, weight]`, for a grid must hold zero.

    Raises ModelError for NaN and infinity.
    """
    lowest, highest = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    check_finite(highest.maximum(-lowest), component)
    return lowest, highest


def fit_range(
    lowest: Tensor, highest: Tensor, bits: int, stored: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """s = (highest − lowest) / (2^b − 1) as `stored`, and z = −2^(b−1) − lowest / s, not rounded; all `[rows, group]`.

    s is 1 for a group of zeros, and fitted to its dtype by `fit_scales`; z is held in the range of q.
    """
    # Halves, because the whole range of the largest weights overflows.
    scales = fit_scales(highest / 2 - lowest / 2, (2**bits - 1) / 2, stored, dtype)
    start = -(2 ** (bits - 1))
    return scales, (start - lowest / scales.to(lowest.dtype)).clamp(start, -start - 1)


def place_affine(groups: Tensor, scales: Tensor, zeros: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """q = clamp(round(w / s + z), −2^(b−1), 2^(b−1) − 1), half to even, in the dtype of `groups`.

    Next to the largest number of `dtype`, where s · (q − z) would overflow, q ends one step earlier.
    """
    import torch

    scales, zeros = (part.to(groups.dtype)[..., None] for part in (scales, zeros))
    # A little less than the largest number, for it is divided and multiplied again.
    steps = torch.finfo(dtype).max * (1 - 2**-20) / scales
    start = -(2 ** (bits - 1))
    lowest, highest = (zeros - steps).ceil().clamp(min=start), (zeros + steps).floor().clamp(max=-start - 1)
    return (groups / scales + zeros).round().clamp(lowest, highest)


def round_to_affine_grid(
    weight: Tensor, bits: int, group: int, component: Component, clip: bool = False
) -> AffineWeight:
    """Round to nearest between the smallest and the largest weight of a group, z rounded to an integer of b bits.

    `weight` `[out, in]`; zero stays zero exactly. |w − ŵ| ≤ s/2 + max(0, range − (2^b − 1) · s), of which the second
    term is what rounding s to its dtype cuts off. `clip` shrinks the range by `search_clip`. Raises ModelError for NaN
    and infinity.
    """
    import torch

    group = min(group, weight.shape[1])
    groups = split_groups(weight.to(working_dtype(weight.dtype)), len(weight), group)
    lowest, highest = find_range(groups, component)
    stored = scales_dtype(weight, component)

    def fit(factor: float) -> tuple[Tensor, Tensor]:
        scales, zeros = fit_range(factor * lowest, factor * highest, bits, stored, weight.dtype)
        return scales, zeros.round().to(torch.int8)

    def decode(scales: Tensor, zeros: Tensor) -> Tensor:
        integers = place_affine(groups, scales, zeros, bits, weight.dtype)
        return decode_affine(integers, scales, zeros, weight.dtype)

    scales, zeros = search_clip(groups, fit, decode) if clip else fit(1.0)
    integers = place_affine(groups, scales, zeros, bits, weight.dtype).to(torch.int8)
    return AffineWeight(join_groups(integers, weight), scales, zeros, group, bits, weight.dtype)
