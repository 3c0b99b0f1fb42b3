"""torch's own products of integer weights with a few rows of inputs as they come, and the modules that run them.

The rule: 8 bits with a scale for each row or for the matrix, and 4 bits, in a bfloat16 model on a CPU, for at most
`ROWS` rows of inputs at once, as one token after the other is; every other product makes the weight first. For in
float32 and float16 these kernels of torch 2.13 take many times as long as the dense product, as they do for long inputs
in bfloat16. `torch.ops.aten._dyn_quant_matmul_4bit` rounds the inputs to integers, which is not the model that was
scored; where the scored model does so, see integers.py. On a GPU there are kernels too, and none is taken, for none has
been measured here.
"""

from __future__ import annotations

import functools
from abc import abstractmethod

import torch
from torch import Tensor

from compressor.contracts import Strategy
from compressor.export.loading.packed_linear import StoredLinear, WeightlessLinear, decode

ROWS = 16
"""Rows of inputs at once up to which the kernels gain over making the weight first."""
GROUPS = (256, 128, 64, 32)
"""Neighbours that may share a scale in the product of 4 bits."""
WIDTH, HEIGHT = 16, 16
"""What `in` must be a multiple of for 8 bits, whose kernel reads beyond the end otherwise, and `out` for 4 bits."""


class KernelLinear(WeightlessLinear):
    """A module whose product of few rows, or of any number of them, is a kernel's."""

    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    most_rows: float = ROWS
    """Of inputs, and how many of these at once, that the kernel takes."""

    @classmethod
    @abstractmethod
    def serves(cls, module: StoredLinear) -> bool:
        """Is the kernel made for such integers and scales?"""

    def __init__(self, module: StoredLinear) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        self.rounding = module.rounding

    @abstractmethod
    def multiply(self, inputs: Tensor) -> Tensor:
        """x ŵᵀ `[row, out]` of x `[row, in]`, by the kernel, in the dtype of x or float32."""

    def agrees(self, weight: Tensor) -> bool:
        """Is the product within ε · Σ |x| |ŵ| of the one in float64?"""
        inputs = torch.linspace(-1, 1, 2 * self.in_features).sin().view(2, -1).to(weight.dtype)
        gap = (self.multiply(inputs).double() - inputs.double() @ weight.double().T).abs()
        room = torch.finfo(weight.dtype).eps * (inputs.double().abs() @ weight.double().abs().T)
        return bool((gap <= room).all())

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.numel() // self.in_features
        if not 0 < rows <= self.most_rows or inputs.dtype not in self.dtypes or inputs.device.type != "cpu":
            return super().forward(inputs)
        product = self.multiply(inputs.reshape(rows, self.in_features).contiguous())
        if self.bias is not None:
            product += self.bias
        return product.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


class Int8Linear(KernelLinear):
    """q int8 `[out, in]` and s `[out]`, by `torch._weight_int8pack_mm`: sums in float32, scaled and rounded once."""

    integers: Tensor
    scales: Tensor

    @classmethod
    def serves(cls, module: StoredLinear) -> bool:
        scheme = module.scheme
        plain = scheme.symmetric and scheme.strategy is not Strategy.group and scheme.inputs is None
        return scheme.bits == 8 and plain and module.in_features % WIDTH == 0

    def __init__(self, module: StoredLinear) -> None:
        super().__init__(module)
        self.register_buffer("integers", module.read_integers().contiguous())
        self.register_buffer("scales", module.weight_scale.flatten().expand(self.out_features).contiguous())

    @property
    def weight(self) -> Tensor:
        return decode(self.integers, self.scales[:, None])

    def multiply(self, inputs: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(inputs, self.integers, self.scales)


class Int4Linear(KernelLinear):
    """q + 8 in 4 bits and s, by `torch.ops.aten._weight_int4pack_mm_for_cpu`.

    `words` uint8 `[out, in / 2]` are in an order of the kernel's own, which differs between machines: block after block
    of rows, and there column after column. `places` `[block]` says where in a column a row is, were the low halves of
    its bytes followed by the high ones. `scales` `[in / group, out, 2]` are s and the kernel's shift, which is 0; a
    group that the kernel does not know is several that it knows.
    """

    words: Tensor
    scales: Tensor
    places: Tensor

    @classmethod
    def serves(cls, module: StoredLinear) -> bool:
        scheme = module.scheme
        if scheme.bits != 4 or not scheme.symmetric or scheme.inputs is not None or module.out_features % HEIGHT:
            return False
        return find_group(module) is not None and find_places(module.out_features) is not None

    def __init__(self, module: StoredLinear) -> None:
        super().__init__(module)
        group, places = find_group(module), find_places(module.out_features)
        assert group is not None and places is not None, "asked by `serves`"
        self.group, groups = group, module.in_features // group
        scales = module.weight_scale.view(-1, module.weight_scale.shape[-1]).expand(self.out_features, -1)
        scales = scales.repeat_interleave(groups // scales.shape[1], dim=1).T
        pairs = torch.stack([scales, torch.zeros_like(scales)], dim=-1)
        self.register_buffer("words", convert_words(module.read_integers() + 8))
        self.register_buffer("scales", pairs.contiguous())
        self.register_buffer("places", places)

    @property
    def weight(self) -> Tensor:
        pairs = self.words.view(-1, self.in_features, len(self.places) // 2).transpose(1, 2).contiguous()
        rows = torch.cat([pairs & 15, pairs >> 4], dim=1).index_select(1, self.places)
        integers = rows.view(torch.int8).view(self.out_features, self.in_features) - 8
        return decode(integers, self.scales[..., 0].T)

    def multiply(self, inputs: Tensor) -> Tensor:
        kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
        product: Tensor = kernel(inputs, self.words, self.group, self.scales)
        return product


def find_group(module: StoredLinear) -> int | None:
    """The largest group that the kernel knows, and that parts those of the module."""
    reach = module.scheme.group or module.in_features
    return next((group for group in GROUPS if reach % group == 0), None)


def convert_words(integers: Tensor) -> Tensor:
    """uint8 `[out, in / 2]` in the kernel's order, of q + 8 `[out, in]`."""
    words: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.to(torch.int32), 1)
    return words


@functools.cache
def find_places(out: int) -> Tensor | None:
    """`places` of `Int4Linear`, by where the kernel puts the numbers of rows; None where its blocks differ."""
    numbers = torch.arange(out)[:, None].expand(out, 2)
    rows = torch.zeros(2 * out, dtype=torch.int64)
    for shift in range(0, out.bit_length(), 4):  # four bits of the number at a time
        words = convert_words(numbers >> shift & 15).flatten()
        rows |= torch.stack([words & 15, words >> 4], dim=-1).flatten().long() << shift
    block = int((rows == rows[0]).nonzero()[1])  # the second column of the first block begins there
    if out % block:
        return None
    order = rows[:block]
    wanted = torch.arange(0, out, block)[:, None, None] + order.expand(2, block)
    if not torch.equal(rows.view(-1, 2, block), wanted):
        return None
    return torch.cat([order[0::2], order[1::2]]).argsort()
