"""Weights on a symmetric integer grid: scales and rounding; every round-to-nearest method shares it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.contracts import Component, CompressedWeight, Grid, Offer, TokenRounding
from compressor.errors import ConfigError, ModelError

from .clip_search import search_clip

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class IntegerWeight(CompressedWeight):
    """ŵ = s · q with one scale s for each group of weights.

    `integers` q `[out, in]` int8 in [−2^(b−1), 2^(b−1) − 1]; `scales` s `[out, group]`, or `[1, 1]` for the whole
    matrix; `group` neighbours along `in` share a scale, the last group of a row may be shorter; `bits_each` is b.
    `inputs` is how inputs are rounded before they are multiplied with ŵ, None if they stay as they are.
    """

    integers: Tensor
    scales: Tensor
    group: int
    bits_each: int
    dtype: torch.dtype
    inputs: TokenRounding | None = None

    def dense(self) -> Tensor:
        compute = working_dtype(self.dtype)
        values = self.scales.to(compute)[..., None] * split_groups(self.integers, len(self.scales), self.group)
        return join_groups(values, self.integers).to(self.dtype)

    @property
    def bits(self) -> int:
        return self.integers.numel() * self.bits_each + self.scales.numel() * self.scales.element_size() * 8

    @property
    def grid(self) -> Grid:
        return Grid(self.integers, self.scales, self.bits_each, self.group, inputs=self.inputs)

    @property
    def input_transform(self) -> TokenRounding | None:
        return self.inputs


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic is in float32, and in float64 for weights of that."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32


def split_groups(matrix: Tensor, rows: int, group: int) -> Tensor:
    """`[out, in]` as `[rows, group, weight]`, a shorter last group filled with zeros; `rows` is out, or 1."""
    from torch.nn.functional import pad

    lines = matrix.reshape(rows, -1)
    return pad(lines, (0, -lines.shape[1] % group)).view(rows, -1, group)


def join_groups(groups: Tensor, like: Tensor) -> Tensor:
    """Undo `split_groups`: back to the shape of `like` `[out, in]`."""
    width = like.numel() // len(groups)
    return groups.flatten(1)[:, :width].reshape(like.shape)


def scales_dtype(weight: Tensor, component: Component) -> torch.dtype:
    """Scales are as wide as the weights, here or in the checkpoint if that is narrower: 16 bits, or 32.

    A 16-bit checkpoint that was widened on loading gets bfloat16, the one that no scale overflows.
    """
    import torch

    if weight.dtype.itemsize == 2:
        return weight.dtype
    return torch.float32 if component.stored_bits > 16 else torch.bfloat16


def fit_scales(largest: Tensor, limit: float, stored: torch.dtype, dtype: torch.dtype) -> Tensor:
    """s = max|w| / `limit`, rounded to what is `stored`; 1 for a group of zeros.

    A rounded scale is moved by one step where `limit` + ½ of it are less than the largest weight (tiny scales have few
    bits left; those that vanish become the smallest positive one), or where `limit` of it overflow the weight's
    `dtype`.
    """
    import torch

    scales = (largest / limit).to(stored)
    integers = {2: torch.int16, 4: torch.int32}[scales.itemsize]
    reach = scales.to(largest.dtype)
    step = (reach * (limit + 0.5) < largest).to(integers) - (reach * limit > torch.finfo(dtype).max).to(integers)
    # Bit patterns of positive floats, infinity included, are in the order of their values.
    return (scales.view(integers) + step).view(stored).masked_fill(largest == 0, 1)


def round_to_grid(
    weight: Tensor,
    bits: int,
    group: int,
    rows: int,
    component: Component,
    clip: bool = False,
    balanced: bool = False,
) -> IntegerWeight:
    """Round to nearest: q = clamp(round(w / s), −2^(b−1), 2^(b−1) − 1), half to even, s = max|w| / (2^(b−1) − ½).

    `weight` `[out, in]`; `group` neighbours share s, in each of `rows` lines (out, or 1 for the whole matrix). s is the
    scale as stored, so that |w − ŵ| ≤ s/2 up to the rounding of dtypes. `balanced` does without −2^(b−1), and the
    largest |w| is at 2^(b−1) − 1. `clip` searches for a smaller max|w| by `search_clip`. Raises ModelError for NaN and
    infinity.
    """
    import torch

    group = min(group, weight.numel() // rows)
    groups = split_groups(weight.to(working_dtype(weight.dtype)), rows, group)
    largest = groups.abs().amax(-1)
    check_finite(largest, component)
    highest, stored = 2 ** (bits - 1) - 1, scales_dtype(weight, component)

    def fit(factor: float) -> tuple[Tensor]:
        return (fit_scales(factor * largest, highest if balanced else highest + 0.5, stored, weight.dtype),)

    def place(scales: Tensor) -> Tensor:
        lowest = torch.full_like(scales, -highest) if balanced else find_lowest(scales, bits, weight.dtype)
        wide = scales.to(groups.dtype)[..., None]
        return (groups / wide).round().clamp(max=highest).maximum(lowest.to(groups.dtype)[..., None])

    def decode(scales: Tensor) -> Tensor:
        return (scales.to(groups.dtype)[..., None] * place(scales)).to(weight.dtype)

    (scales,) = search_clip(groups, fit, decode) if clip else fit(1.0)
    return IntegerWeight(join_groups(place(scales).to(torch.int8), weight), scales, group, bits, weight.dtype)


def find_lowest(scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The lowest integer like `scales`: −2^(b−1), or one more where that would overflow the weight's `dtype`."""
    import torch

    lowest = -(2 ** (bits - 1))
    overflows = scales.to(working_dtype(dtype)) > torch.finfo(dtype).max / -lowest
    return torch.full_like(scales, lowest).masked_fill(overflows, lowest + 1)


def offer_bits(compressor: str, widths: list[int], component: Component) -> Offer:
    """The amounts 1 − b / stored bits of all `widths` b that take something away; raises ConfigError if none does."""
    levels = tuple(1 - bits / component.stored_bits for bits in widths if bits < component.stored_bits)
    if not levels:
        raise ConfigError(
            f"`{compressor}` offers nothing for `{component.name}`: {min(widths)} bits must be fewer than the"
            f" {component.stored_bits} stored; choose fewer bits, or exclude it by components.exclude"
        )
    return Offer(levels=levels)


def choose_bits(compressor: str, offer: Offer, amount: float, component: Component) -> int:
    """The width that `amount` stands for; raises PlanError if that is not on `offer`."""
    offer.require(amount, compressor, component)
    return round((1 - amount) * component.stored_bits)


def check_finite(largest: Tensor, component: Component) -> None:
    """Raises ModelError if `largest`, of every group, is NaN or infinite anywhere."""
    if not largest.isfinite().all():
        raise ModelError(
            f"weight of `{component.name}` contains NaN or infinity; a grid needs finite weights, mend the checkpoint"
        )


def check_widths(compressor: str, widths: list[int]) -> None:
    """Raises ConfigError unless `widths` are one or more different ones from 2 to 8."""
    if not widths or len(set(widths)) < len(widths) or not set(widths) <= set(range(2, 9)):
        raise ConfigError(
            f"`compressor.{compressor}.bits` must be different widths from 2 to 8, got {widths};"
            " give for example [3,4,8]"
        )


def check_group(compressor: str, group: int, least: int) -> None:
    """Raises ConfigError for a `group` below `least`."""
    if group < least:
        raise ConfigError(f"`compressor.{compressor}.group` must be at least {least}, got {group}; give for example 32")
