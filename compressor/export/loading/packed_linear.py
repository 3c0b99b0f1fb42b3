"""Linear modules that hold their integers as they lie in a folder, and make their weight whenever it is used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.contracts import Scheme, Strategy, TokenRounding


class StoredLinear(nn.Module, ABC):
    """y = x ŵᵀ + b `[…, out]` for x `[…, in]`; ŵ = s · (q − z) `[out, in]` is computed at every call.

    ŵ is rounded to the dtype of s. The tensors are those of an exported folder (export/compressed_tensors.py);
    `weight_scale` is s `[1]`, `[out, 1]` or `[out, group]`. With `rounding`, inputs are rounded before the product.
    Contents are set later, by whatever loads a state.
    """

    stored: ClassVar[dict[str, torch.dtype]]
    """The dtype of each tensor that holds integers."""
    bias: nn.Parameter | None
    rounding: TokenRounding | None
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, scheme: Scheme) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", bias)
        self.scheme, self.rounding = scheme, scheme.inputs
        self.groups = in_features // scheme.group if scheme.strategy is Strategy.group else 1
        scales = (1,) if scheme.strategy is Strategy.tensor else (out_features, self.groups)
        self.register_buffer("weight_scale", torch.empty(scales))

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """ŵ `[out, in]`, the same bits at every call; it is a copy, and to change it changes nothing."""

    @abstractmethod
    def read_integers(self) -> Tensor:
        """q `[out, in]`, int8."""

    def forward(self, inputs: Tensor) -> Tensor:
        """`[…, out]`, to the bits of `torch.nn.Linear` with this weight."""
        inputs = inputs if self.rounding is None else self.rounding(inputs)
        return nn.functional.linear(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        features = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        scheme = self.scheme
        shared = f"group={scheme.group}" if scheme.group else f"scale of each {scheme.strategy.value}"
        treated = "" if self.rounding is None else f", inputs of {self.rounding.bits} bits"
        return f"{features}, bits={scheme.bits}, {shared}{treated}"


class ByteLinear(StoredLinear):
    """ŵ = s · q of int8 q `[out, in]`, and inputs that are rounded as they were when the model was scored.

    A folder calls q `weight`, and so does a state of this module. The attribute `weight` is q too until whatever loads
    says `is_loaded`, for it wants to find there what it has put; from then on that is ŵ, as of every module.
    """

    stored: ClassVar[dict[str, torch.dtype]] = {"weight": torch.int8}
    is_loaded = False

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, scheme: Scheme) -> None:
        super().__init__(in_features, out_features, bias, scheme)
        # Not by `register_buffer`, which takes no name that is a property.
        self._buffers["weight"] = torch.empty(out_features, in_features, dtype=torch.int8)

    def read_integers(self) -> Tensor:
        integers = self._buffers["weight"]
        assert integers is not None, "set by the constructor"
        return integers

    @property
    def weight(self) -> Tensor:
        integers = self.read_integers()
        return decode(integers, self.weight_scale) if self.is_loaded else integers


class PackedLinear(StoredLinear):
    """ŵ = s · (q − z) of words of 32 bits.

    `weight_packed` int32 `[out, ⌈in · b / 32⌉]` holds q + 2^(b−1) in b bits each, `weight_zero_point` int32
    `[⌈out · b / 32⌉, group]` holds z + 2^(b−1), unless symmetric, and `weight_shape` is `[out, in]`.
    """

    stored: ClassVar[dict[str, torch.dtype]] = {"weight_packed": torch.int32, "weight_zero_point": torch.int32}
    weight_packed: Tensor
    weight_shape: Tensor
    weight_zero_point: Tensor

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, scheme: Scheme) -> None:
        super().__init__(in_features, out_features, bias, scheme)
        words = -(-in_features * scheme.bits // 32)
        self.register_buffer("weight_packed", torch.empty(out_features, words, dtype=torch.int32))
        self.register_buffer("weight_shape", torch.empty(2, dtype=torch.int64))
        if not scheme.symmetric:
            words = -(-out_features * scheme.bits // 32)
            self.register_buffer("weight_zero_point", torch.empty(words, self.groups, dtype=torch.int32))

    def read_integers(self) -> Tensor:
        return unpack(self.weight_packed, self.scheme.bits, self.in_features)

    def read_zeros(self) -> Tensor | None:
        """z `[out, group]`, int8; None where there are no zero points."""
        if self.scheme.symmetric:
            return None
        return unpack(self.weight_zero_point.T, self.scheme.bits, self.out_features).T

    @property
    def weight(self) -> Tensor:
        return decode(self.read_integers(), self.weight_scale, self.read_zeros())


def decode(integers: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """s · (q − z) `[out, in]` of int8 q `[out, in]` and z `[out, group]`, for scales s `[1]` or `[out, group]`.

    In the dtype of the scales; it has every whole number up to 255, so that only the product rounds.
    """
    out, width = integers.shape
    scales = scales.view(-1, 1) if scales.ndim == 1 else scales
    differences = integers.reshape(out, scales.shape[1], -1)
    if zeros is not None:
        differences = differences.to(torch.int16) - zeros[..., None]
    return (differences * scales[..., None]).view(out, width)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """int8 `[row, count]`: the first q of each row of int32 `words` `[row, word]`, which hold q + 2^(b−1) in b bits.

    A row is one string of bits, lowest first, in which the numbers follow each other without gaps.
    """
    stream = words.flatten().view(torch.uint8).view(len(words), -1)  # bytes, lowest first
    if bits == 8:
        return (stream ^ 128).view(torch.int8)[:, :count]
    if bits == 4:
        pairs = stream.to(torch.int16)
        numbers = (pairs | pairs << 4) & 0x0F0F
        return (numbers.view(torch.int8) - 8)[:, :count]
    begins = torch.arange(count, device=words.device) * bits
    first = begins >> 3
    second = (first + 1).clamp(max=stream.shape[1] - 1)  # what is read there beyond the end is masked off
    pairs = stream[:, first].to(torch.int16) | stream[:, second].to(torch.int16) << 8
    numbers = pairs >> (begins & 7).to(torch.int16) & (1 << bits) - 1
    return (numbers - (1 << (bits - 1))).to(torch.int8)
