"""Scales, zero points and rounding of weights to integers, shared by all integer quantizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.contracts import Component, QuantizedMatrix, dequantize, join_groups, split_groups, working_dtype

from ..weight_checks import check_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FACTORS = tuple(1 - step / 40 for step in range(21))
"""Factors that the range is multiplied by: 1, 0.975, …, 0.5."""


@dataclass(frozen=True)
class RoundToNearest:
    """Rounds every weight to the nearest value on a grid of integers with b = `bits`; ties round to even.

        q = clamp(round(w / s + z), −2^(b−1), 2^(b−1) − 1),  ŵ = s · (q − z)

    Each `group` of neighbours along `in` has its own scale; a `group` of 0 means one scale for each row. With
    `whole_matrix` the matrix has one scale.

    - Symmetric: z = 0 and s = max|w| / (2^(b−1) − ½). With `balanced`, −2^(b−1) is not used and the largest |w| is at
      2^(b−1) − 1.
    - With `zero_points`: s = (max(w, 0) − min(w, 0)) / (2^b − 1) and z = round(−2^(b−1) − min(w, 0) / s).

    In both cases a weight of zero stays zero. s is the scale as stored, so |w − ŵ| ≤ s/2, and with zero points
    |w − ŵ| ≤ s/2 + max(0, range − (2^b − 1) · s), up to the rounding of dtypes. With `clip`, `search_clip` makes the
    range of each group smaller where that reduces the error.
    """

    bits: int
    group: int
    zero_points: bool = False
    balanced: bool = False
    whole_matrix: bool = False
    clip: bool = False

    def quantize(self, weight: Tensor, component: Component) -> QuantizedMatrix:
        """Round `weight` `[out, in]`; raises ModelError for NaN and infinity."""
        dtype, stored = weight.dtype, scales_dtype(weight, component)
        rows, width = (1, weight.numel()) if self.whole_matrix else weight.shape
        group = min(self.group, width) or width
        groups = split_groups(weight.to(working_dtype(dtype)), rows, group)
        lowest, highest = find_range(groups, component)

        def fit(factor: float) -> tuple[Tensor, ...]:
            if self.zero_points:
                scales, zeros = fit_range(factor * lowest, factor * highest, self.bits, stored, dtype)
                return scales, zeros.round().char()
            limit = 2 ** (self.bits - 1) - (1 if self.balanced else 0.5)
            return (fit_scales(factor * highest.maximum(-lowest), limit, stored, dtype),)

        def place(scales: Tensor, zeros: Tensor | None = None) -> Tensor:
            return round_groups(groups, scales, zeros, self.bits, dtype, self.balanced)

        def decode(scales: Tensor, zeros: Tensor | None = None) -> Tensor:
            return dequantize(place(scales, zeros), scales, zeros, dtype)

        scales, *rest = search_clip(groups, fit, decode) if self.clip else fit(1.0)
        zeros = rest[0] if rest else None
        integers = join_groups(place(scales, zeros).char(), weight.shape)
        return QuantizedMatrix(integers, scales, self.bits, group, dtype, zeros)


def search_clip(
    groups: Tensor, fit: Callable[[float], tuple[Tensor, ...]], decode: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    """The grid of the factor c* = argmin over c in `FACTORS` of Σ (w − ŵ_c)², the sum over a group.

    `groups` is `[rows, group, weight]`. `fit(c)` returns the grid of the range multiplied by c, as tensors
    `[rows, group]`. `decode(*grid)` returns the weights rounded to it, ŵ_c `[rows, group, weight]`, in the dtype of
    the weight. In a tie c = 1 is kept, so no group has a larger error than without the search.
    """
    largest = groups.abs().amax(-1, keepdim=True)
    unit = largest.masked_fill(largest == 0, 1)

    def add_error(grid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # In units of the group's largest weight, because its square may overflow or underflow.
        return (((groups - decode(*grid).to(groups.dtype)) / unit).square().sum(-1), *grid)

    best = add_error(fit(1.0))
    for factor in FACTORS[1:]:
        best = keep_better(best, add_error(fit(factor)))
    return best[1:]


def keep_better(best: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For each group the tensors with the smaller error (the first tensor, `[rows, group]`); `best` in a tie."""
    better = found[0] < best[0]
    return tuple(new.where(better, old) for new, old in zip(found, best, strict=True))


def find_range(groups: Tensor, component: Component) -> tuple[Tensor, Tensor]:
    """min(w, 0) and max(w, 0) `[rows, group]` of `groups` `[rows, group, weight]`.

    Raises ModelError for NaN and infinity.
    """
    lowest, highest = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    check_finite(highest.maximum(-lowest), component)
    return lowest, highest


def scales_dtype(weight: Tensor, component: Component) -> torch.dtype:
    """The dtype of scales: 16 or 32 bits, as wide as the weights in memory or in the checkpoint if that is narrower.

    A 16-bit checkpoint that was loaded in a wider dtype gets bfloat16, because no scale overflows its range.
    """
    import torch

    if weight.dtype.itemsize == 2:
        return weight.dtype
    return torch.float32 if component.stored_bits > 16 else torch.bfloat16


def fit_scales(largest: Tensor, limit: float, stored: torch.dtype, dtype: torch.dtype) -> Tensor:
    """s = max|w| / `limit`, rounded to the dtype `stored`; 1 for a group of zeros.

    The rounded scale is increased by one step where (`limit` + ½) · s is less than the largest weight (tiny scales have
    few bits; a scale of 0 becomes the smallest positive number). It is decreased by one step where `limit` · s
    overflows the weight's `dtype`.
    """
    import torch

    scales = (largest / limit).to(stored)
    integers = {2: torch.int16, 4: torch.int32}[scales.itemsize]
    reach = scales.to(largest.dtype)
    step = (reach * (limit + 0.5) < largest).to(integers) - (reach * limit > torch.finfo(dtype).max).to(integers)
    # The bit patterns of positive floats, infinity included, have the order of their values.
    return (scales.view(integers) + step).view(stored).masked_fill(largest == 0, 1)


def fit_range(
    lowest: Tensor, highest: Tensor, bits: int, stored: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """s = (highest − lowest) / (2^b − 1) as `stored`, and z = −2^(b−1) − lowest / s, not rounded; all `[rows, group]`.

    s is 1 for a group of zeros, and is rounded by `fit_scales`; z is clamped to the range of q.
    """
    # Half the range, because the range of the largest weights overflows.
    scales = fit_scales(highest / 2 - lowest / 2, (2**bits - 1) / 2, stored, dtype)
    start = -(2 ** (bits - 1))
    return scales, (start - lowest / scales.to(lowest.dtype)).clamp(start, -start - 1)


def find_bounds(scales: Tensor, zeros: Tensor | None, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The lowest and the highest q for each scale: two tensors of the shape of `scales`, in the dtype of arithmetic.

    They are −2^(b−1) and 2^(b−1) − 1, or closer together where s · (q − z) would overflow the weight's `dtype`.
    """
    import torch

    scales, largest = scales.to(working_dtype(dtype)), torch.finfo(dtype).max
    start, end = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if zeros is None:
        # After `fit_scales` only the lowest can overflow.
        lowest = torch.full_like(scales, start).masked_fill(scales > largest / -start, start + 1)
        return lowest, torch.full_like(scales, end)
    # Slightly less than the largest number, because the division and the multiplication round.
    steps, zeros = largest * (1 - 2**-20) / scales, zeros.to(scales.dtype)
    return (zeros - steps).ceil().clamp(min=start), (zeros + steps).floor().clamp(max=end)


def round_within(weight: Tensor, scales: Tensor, zeros: Tensor | None, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """q = clamp(round(w / s + z), lowest, highest), half to even. All tensors have one dtype; z None means 0."""
    steps = weight / scales
    return (steps if zeros is None else steps + zeros).round().clamp(*bounds)


def round_groups(
    groups: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, dtype: torch.dtype, balanced: bool = False
) -> Tensor:
    """q `[rows, group, weight]` in the dtype of `groups`, for s and z `[rows, group]` and weights of `dtype`."""
    lowest, highest = find_bounds(scales, zeros, bits, dtype)
    bounds = (lowest.maximum(-highest) if balanced else lowest)[..., None], highest[..., None]
    wide = None if zeros is None else zeros.to(groups.dtype)[..., None]
    return round_within(groups, scales.to(groups.dtype)[..., None], wide, bounds)
