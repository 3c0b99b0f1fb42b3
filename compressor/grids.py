"""A weight that is nothing but integers, scales and zero points: what formats of other programs can hold."""

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
class Scheme:
    """How integers of so many `bits` stand for weights; `group` is 0 unless groups share a scale.

    Not `symmetric`, every scale comes with a zero point.
    """

    bits: int
    strategy: Strategy
    group: int
    symmetric: bool


@dataclass(frozen=True)
class Grid:
    """ŵ = s · (q − z), each number of the formula exactly as it is stored.

    `integers` q `[out, in]` int8 in [−2^(b−1), 2^(b−1) − 1] for b `bits`; `scales` s `[out, group]`, or `[1, 1]` for
    the whole matrix; `zeros` z int8 like s and in the range of q, None for 0; `group` neighbours along `in` share s and
    z, the last group of a row may be shorter.
    """

    integers: Tensor
    scales: Tensor
    bits: int
    group: int
    zeros: Tensor | None = None

    @property
    def scheme(self) -> Scheme:
        """What the numbers mean, without the numbers."""
        symmetric = self.zeros is None
        if len(self.scales) < len(self.integers):
            return Scheme(self.bits, Strategy.tensor, 0, symmetric)
        if self.scales.shape[1] == 1:
            return Scheme(self.bits, Strategy.channel, 0, symmetric)
        return Scheme(self.bits, Strategy.group, self.group, symmetric)

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
        return Grid(self.integers - zeros, self.scales, self.bits + 1, self.group)

    def to(self, device: torch.device | str) -> Grid:
        """The same on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return dataclasses.replace(self, integers=self.integers.to(device), scales=self.scales.to(device), zeros=zeros)
