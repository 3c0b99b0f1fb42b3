"""Linear modules that hold the integers of an exported folder, and decode their weight at every use."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.contracts import QuantizedMatrix, Scheme, Strategy, TokenRounding
from compressor.export.compressed_tensors import unpack_integers


class StoredLinear(nn.Module, ABC):
    """y = x ŵᵀ + b `[…, out]` for x `[…, in]`; ŵ = s · (q − z) `[out, in]` is computed at every call.

    ŵ is rounded to the dtype of s. The tensors are those of an exported folder (export/compressed_tensors.py);
    `weight_scale` is s `[1]`, `[out, 1]` or `[out, group]`. With `rounding`, inputs are rounded before the product. The
    tensors get their values when a state is loaded.
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
        self.scheme, self.rounding = scheme, scheme.input_rounding
        self.groups = in_features // scheme.group if scheme.strategy is Strategy.group else 1
        scales = (1,) if scheme.strategy is Strategy.tensor else (out_features, self.groups)
        self.register_buffer("weight_scale", torch.empty(scales))

    @abstractmethod
    def read_integers(self) -> Tensor:
        """q `[out, in]`, int8."""

    def read_zeros(self) -> Tensor | None:
        """z `[out, group]`, int8; None where there are no zero points."""
        return None

    @property
    def quantized(self) -> QuantizedMatrix:
        """The stored tensors, unpacked; ŵ has the dtype of the scales."""
        scheme, scales = self.scheme, self.weight_scale
        matrix = scales[:, None] if scales.ndim == 1 else scales
        zeros = self.read_zeros()
        return QuantizedMatrix(self.read_integers(), matrix, scheme.bits, scheme.group, scales.dtype, zeros)

    @property
    def weight(self) -> Tensor:
        """ŵ `[out, in]`, with the same bits at every call. It is a copy: changing it does not change the module."""
        return self.quantized.dense()

    def forward(self, inputs: Tensor) -> Tensor:
        """`[…, out]`, with the same bits as `torch.nn.Linear` with this weight."""
        inputs = inputs if self.rounding is None else self.rounding(inputs)
        return nn.functional.linear(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        features = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        scheme = self.scheme
        shared = f"group={scheme.group}" if scheme.group else f"scale of each {scheme.strategy.value}"
        treated = "" if self.rounding is None else f", inputs of {self.rounding.bits} bits"
        return f"{features}, bits={scheme.bits}, {shared}{treated}"


class ByteLinear(StoredLinear):
    """ŵ = s · q with int8 q `[out, in]`, and the rounding of inputs with which the model was scored.

    q is named `weight` in a folder and in the state of this module. The attribute `weight` is q too until `is_loaded`
    is set, because transformers reads back the weights that it has loaded. After that it is ŵ, as in every linear
    module.
    """

    stored: ClassVar[dict[str, torch.dtype]] = {"weight": torch.int8}
    is_loaded = False

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, scheme: Scheme) -> None:
        super().__init__(in_features, out_features, bias, scheme)
        # `register_buffer` does not accept the name of a property.
        self._buffers["weight"] = torch.empty(out_features, in_features, dtype=torch.int8)

    def read_integers(self) -> Tensor:
        integers = self._buffers["weight"]
        assert integers is not None, "set by the constructor"
        return integers

    @property
    def weight(self) -> Tensor:
        return super().weight if self.is_loaded else self.read_integers()


class PackedLinear(StoredLinear):
    """ŵ = s · (q − z) with q and z in 32-bit words.

    `weight_packed` int32 `[out, ⌈in · b / 32⌉]` holds q + 2^(b−1) in b bits each, `weight_zero_point` int32
    `[⌈out · b / 32⌉, group]` holds z + 2^(b−1), unless symmetric, and `weight_shape` is `[out, in]`.
    """

    stored: ClassVar[dict[str, torch.dtype]] = {
        "weight_packed": torch.int32, "weight_zero_point": torch.int32, "weight_shape": torch.int64,
    }  # fmt: skip
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
        return unpack_integers(self.weight_packed, self.scheme.bits, self.in_features)

    def read_zeros(self) -> Tensor | None:
        if self.scheme.symmetric:
            return None
        return unpack_integers(self.weight_zero_point.T, self.scheme.bits, self.out_features).T
