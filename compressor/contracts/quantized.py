"""Weights after compression, and those that consist of integers, scales and zero points.

File formats of other programs can store the latter.
"""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.contracts.guard import Guarded

if TYPE_CHECKING:
    import torch
    from torch import Tensor

InputTransform = Callable[["Tensor"], "Tensor"]
"""A function of the inputs `[..., in]` of a matrix product: same shape and dtype, each token independently."""


class CompressedWeight(Guarded, ABC):
    """A weight after compression, in its stored form."""

    _kind = "compressed weight"

    @abstractmethod
    def dense(self) -> Tensor:
        """The value `[out, in]` that the matrix product uses, in the dtype of the weight that was given."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of the packed weight: integers, scales, zero points and everything else that `dense` needs."""

    @property
    def quantized(self) -> QuantizedMatrix | None:
        """The weight as integers and scales, if that is all of it; an export can pack it. None: it is saved dense."""
        return None

    @property
    def input_transform(self) -> InputTransform | None:
        """The transform of the inputs before the matrix product, simulated in their own dtype; None for no transform.

        It is a pure function of inputs `[..., in]` that handles each token independently. It must be None unless
        `Compressor.transforms_inputs` is True.
        """
        return None


class Strategy(enum.Enum):
    """Which weights of a matrix `[out, in]` share a scale: all, an output row, or `group` neighbours in a row."""

    tensor = "tensor"
    channel = "channel"
    group = "group"


@dataclass(frozen=True)
class TokenRounding:
    """Rounds inputs to integers of `bits` bits, with one scale for each token x `[in]`.

        s = max|x| / ((2^b − 1) / 2),  q = clamp(round(x / s), −2^(b−1), 2^(b−1) − 1),  x̂ = s · q

    Ties round to even. Every step is computed in the dtype of x, as compressed-tensors does for dynamic symmetric
    integers. A token of zeros stays zero. The float product of x̂ and ŵ = s_w · q_w equals s · s_w · Σ q q_w, the
    product of integers, up to the rounding of that dtype.
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
    """How integers of `bits` bits represent weights; `group` is 0 unless groups share a scale.

    If it is not `symmetric`, every scale has a zero point. `input_rounding` is None if inputs are not rounded.
    """

    bits: int
    strategy: Strategy
    group: int
    symmetric: bool
    input_rounding: TokenRounding | None = None


@dataclass(frozen=True, eq=False)
class QuantizedMatrix(CompressedWeight, guarded=False):
    """ŵ = s · (q − z): a weight matrix stored as integers, scales and optional zero points.

    - `integers` q `[out, in]` int8, in [−2^(b−1), 2^(b−1) − 1] for b = `integer_bits`;
    - `scales` s `[out, group]`, or `[1, 1]` for the whole matrix;
    - `group` neighbours along `in` share s and z; the last group of a row may be shorter; 0 means a whole row;
    - `dtype` of ŵ;
    - `zeros` z int8, of the shape of s and in the range of q; None means z = 0;
    - `input_rounding` is applied to the inputs before the matrix product; None does not round them.
    """

    integers: Tensor
    scales: Tensor
    integer_bits: int
    group: int
    dtype: torch.dtype
    zeros: Tensor | None = None
    input_rounding: TokenRounding | None = None

    def dense(self) -> Tensor:
        groups = split_groups(self.integers, len(self.scales), self.group)
        return join_groups(dequantize(groups, self.scales, self.zeros, self.dtype), self.integers.shape)

    @property
    def bits(self) -> int:
        """Integers and zero points take `integer_bits` each, scales the bits of their dtype."""
        integers = self.integers.numel() + (0 if self.zeros is None else self.zeros.numel())
        return integers * self.integer_bits + 8 * self.scales.nbytes

    @property
    def quantized(self) -> QuantizedMatrix:
        return self

    @property
    def input_transform(self) -> TokenRounding | None:
        return self.input_rounding

    @property
    def scheme(self) -> Scheme:
        """The layout of this matrix, without its numbers."""
        if len(self.scales) < len(self.integers):
            strategy = Strategy.tensor
        else:
            strategy = Strategy.channel if self.scales.shape[1] == 1 else Strategy.group
        group = self.group if strategy is Strategy.group else 0
        return Scheme(self.integer_bits, strategy, group, self.zeros is None, self.input_rounding)

    @property
    def is_even(self) -> bool:
        """Whether all groups of a row have the same length."""
        return self.scheme.strategy is not Strategy.group or self.integers.shape[1] % self.group == 0

    def without_zeros(self) -> QuantizedMatrix | None:
        """The same weight as symmetric integers q − z, which take one bit more; None if that is more than 8."""
        if self.zeros is None:
            return self
        if self.integer_bits == 8:
            return None
        groups = split_groups(self.integers, len(self.scales), self.group)
        integers = join_groups(groups - self.zeros[..., None], self.integers.shape)
        return dataclasses.replace(self, integers=integers, zeros=None, integer_bits=self.integer_bits + 1)

    def to(self, device: torch.device | str) -> QuantizedMatrix:
        zeros = None if self.zeros is None else self.zeros.to(device)
        return dataclasses.replace(self, integers=self.integers.to(device), scales=self.scales.to(device), zeros=zeros)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic on weights of this `dtype`: float32, or float64 for float64."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32


def split_groups(matrix: Tensor, rows: int, group: int) -> Tensor:
    """`[out, in]` as `[rows, group, weight]`; `rows` is out, or 1 if the whole matrix is one row.

    A shorter last group is padded with zeros. With a `group` of 0, or longer than a row, the row is one group.
    """
    from torch.nn.functional import pad

    lines = matrix.reshape(rows, -1)
    width = lines.shape[1]
    group = min(group, width) or width
    return (pad(lines, (0, -width % group)) if width % group else lines).view(rows, -1, group)


def join_groups(groups: Tensor, shape: torch.Size) -> Tensor:
    """Undo `split_groups`: `[rows, group, weight]` as a matrix of this `shape` `[out, in]`."""
    return groups.flatten(1)[:, : shape.numel() // len(groups)].reshape(shape)


def dequantize(integers: Tensor, scales: Tensor, zeros: Tensor | None, dtype: torch.dtype) -> Tensor:
    """ŵ = s · (q − z) in `dtype`, from q `[rows, group, weight]` and s, z `[rows, group]`; z None means 0.

    It is computed in float32 (float64 if `dtype` is float64) and then rounded to `dtype`.
    """
    compute = working_dtype(dtype)
    if scales.dtype == dtype and (zeros is None or not zeros.is_floating_point()):
        compute = dtype  # Same result, less memory: q − z is exact in every dtype, only the product is rounded.
    differences = integers if zeros is None else integers.to(compute) - zeros.to(compute)[..., None]
    return (differences * scales.to(compute)[..., None]).to(dtype)
