"""Weights, and inputs, that are nothing but integers, scales and zero points: what formats of other programs hold."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Strategy(enum.Enum):
    """Which weights of a matrix `[out, in]` share a scale: all, those of an output row, or `group` neighbours there."""

    tensor = "tensor"
    channel = "channel"
    group = "group"


@dataclass(frozen=True)
class TokenRounding:
    """Inputs rounded to integers of so many `bits`, with a scale of its own for every token x `[in]`.

        s = max|x| / ((2^b − 1) / 2),  q = clamp(round(x / s), −2^(b−1), 2^(b−1) − 1),  x̂ = s · q

    Ties round to even, and every number of the formula is rounded to the dtype of x, as the reader of
    compressed-tensors has it for dynamic symmetric integers. A token of zeros stays one. The float product of x̂ and
    ŵ = s_w · q_w is s · s_w · Σ q q_w, the product of integers, up to the rounding of that dtype.
    """

    bits: int = 8

    def __call__(self, inputs: Tensor) -> Tensor:
        """x̂ `[..., in]`, in the dtype of `inputs`."""
        import torch

        limit = 2 ** (self.bits - 1)
        scales = inputs.abs().amax(-1, keepdim=True) / (limit - 0.5)
        scales = scales.masked_fill(scales == 0, torch.finfo(inputs.dtype).eps)
        rounded: Tensor = (inputs / scales).clamp(-limit, limit - 1).round() * scales
        return rounded


@dataclass(frozen=True)
class Scheme:
    """How integers of so many `bits` stand for weights; `group` is 0 unless groups share a scale.

    Not `symmetric`, every scale comes with a zero point. `inputs` is how the inputs are rounded too, None if they stay.
    """

    bits: int
    strategy: Strategy
    group: int
    symmetric: bool
    inputs: TokenRounding | None = None


@dataclass(frozen=True)
class Grid:
    """ŵ = s · (q − z), each number of the formula exactly as it is stored.

    `integers` q `[out, in]` int8 in [−2^(b−1), 2^(b−1) − 1] for b `bits`; `scales` s `[out, group]`, or `[1, 1]` for
    the whole matrix; `zeros` z int8 like s and in the range of q, None for 0; `group` neighbours along `in` share s and
    z, the last group of a row may be shorter. `inputs` is what the compressed weight does to inputs, None for nothing.
    """

    integers: Tensor
    scales: Tensor
    bits: int
    group: int
    zeros: Tensor | None = None
    inputs: TokenRounding | None = None

    @property
    def scheme(self) -> Scheme:
        """What the numbers mean, without the numbers."""
        symmetric = self.zeros is None
        if len(self.scales) < len(self.integers):
            return Scheme(self.bits, Strategy.tensor, 0, symmetric, self.inputs)
        if self.scales.shape[1] == 1:
            return Scheme(self.bits, Strategy.channel, 0, symmetric, self.inputs)
        return Scheme(self.bits, Strategy.group, self.group, symmetric, self.inputs)

    @property
    def is_even(self) -> bool:
        """Are all groups of a row as long?"""
        return self.scheme.strategy is not Strategy.group or self.integers.shape[1] % self.group == 0

    def decode(self, dtype: torch.dtype) -> Tensor:
        """ŵ `[out, in]`: multiplied in float32 (float64 for weights of that), then rounded to `dtype`."""
        import torch

        compute = torch.float64 if dtype == torch.float64 else torch.float32
        width = self.integers.shape[1]
        repeats = width if self.scales.shape[1] == 1 else self.group
        zeros = self.scales.new_zeros(1, self.scales.shape[1]) if self.zeros is None else self.zeros
        scales, zeros = (part.to(compute).repeat_interleave(repeats, 1)[:, :width] for part in (self.scales, zeros))
        return (scales * (self.integers.to(compute) - zeros)).to(dtype)

    def without_zeros(self) -> Grid | None:
        """The same weight by symmetric integers q − z of one bit more; None where they have more than 8."""
        if self.zeros is None:
            return self
        if self.bits == 8:
            return None
        repeats = self.integers.shape[1] if self.scales.shape[1] == 1 else self.group
        zeros = self.zeros.repeat_interleave(repeats, 1)[:, : self.integers.shape[1]]
        return Grid(self.integers - zeros, self.scales, self.bits + 1, self.group, inputs=self.inputs)

    def to(self, device: torch.device | str) -> Grid:
        """The same on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return dataclasses.replace(self, integers=self.integers.to(device), scales=self.scales.to(device), zeros=zeros)
