"""torch's own products of integer weights: which there are, when they are taken, and the modules that run them.

The rule: 8 bits with a scale for each row or for the matrix, and 4 bits, in a bfloat16 model on a CPU, for at most
`ROWS` rows of inputs at once, as one token after the other is; every other product makes the weight first. For in
float32 and float16 these kernels of torch 2.13 take many times as long as the dense product, as they do for long inputs
in bfloat16. `torch._int_mm` and `torch.ops.aten._dyn_quant_matmul_4bit` round the inputs to integers, which is not the
model that was scored. On a GPU there are kernels too, and none is taken, for none has been measured here.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.grids import Strategy
from compressor.inference.packed import PackedLinear, WeightlessLinear, decode

ROWS = 16
"""Rows of inputs at once up to which the kernels gain over making the weight first."""
GROUPS = (256, 128, 64, 32)
"""Neighbours that may share a scale in the product of 4 bits."""
WIDTH, HEIGHT = 16, 16
"""What `in` must be a multiple of for 8 bits, whose kernel reads beyond the end otherwise, and `out` for 4 bits."""

log = logging.getLogger(__name__)


class KernelLinear(WeightlessLinear):
    """A module whose product of a few rows is a kernel's."""

    @classmethod
    def serves(cls, module: PackedLinear) -> bool:
        """Is the kernel made for this module, of a bfloat16 model on a CPU?"""
        raise NotImplementedError

    def __init__(self, module: PackedLinear) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)

    def multiply(self, inputs: Tensor) -> Tensor:
        """x ŵᵀ `[row, out]` of bfloat16 x `[row, in]`, by the kernel."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.numel() // self.in_features
        if not 0 < rows <= ROWS or inputs.dtype is not torch.bfloat16 or inputs.device.type != "cpu":
            return super().forward(inputs)
        product = self.multiply(inputs.reshape(rows, self.in_features).contiguous())
        if self.bias is not None:
            product += self.bias
        return product.view(*inputs.shape[:-1], self.out_features)


class Int8Linear(KernelLinear):
    """q int8 `[out, in]` and s `[out]`, by `torch._weight_int8pack_mm`: sums in float32, scaled and rounded once."""

    integers: Tensor
    scales: Tensor

    @classmethod
    def serves(cls, module: PackedLinear) -> bool:
        scheme = module.scheme
        plain = scheme.symmetric and scheme.strategy is not Strategy.group
        return scheme.bits == 8 and plain and module.in_features % WIDTH == 0

    def __init__(self, module: PackedLinear) -> None:
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
    def serves(cls, module: PackedLinear) -> bool:
        if module.scheme.bits != 4 or not module.scheme.symmetric or module.out_features % HEIGHT:
            return False
        return find_group(module) is not None and find_places(module.out_features) is not None

    def __init__(self, module: PackedLinear) -> None:
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


def find_group(module: PackedLinear) -> int | None:
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


KERNELS: tuple[type[KernelLinear], ...] = (Int8Linear, Int4Linear)


def choose_kernel(module: PackedLinear) -> KernelLinear | None:
    """The module by a kernel that is made for it and that says the same on this machine; None if there is none."""
    if module.weight_scale.dtype is not torch.bfloat16 or module.weight_scale.device.type != "cpu":
        return None
    kind = next((kind for kind in KERNELS if kind.serves(module)), None)
    if kind is None:
        return None
    made = kind(module)
    return made if agrees(made, module) else None


def agrees(kernel: KernelLinear, module: PackedLinear) -> bool:
    """Is its weight the same bit for bit, and its product within ε · Σ |x| |ŵ| of the one in float64?"""
    weight = module.weight
    if not torch.equal(kernel.weight, weight):
        return False
    inputs = torch.linspace(-1, 1, 2 * module.in_features).sin().view(2, -1).to(torch.bfloat16)
    gap = (kernel.multiply(inputs).double() - inputs.double() @ weight.double().T).abs()
    room = torch.finfo(torch.bfloat16).eps * (inputs.double().abs() @ weight.double().abs().T)
    return bool((gap <= room).all())


def use_kernels(network: PreTrainedModel) -> None:
    """Put modules that run by a kernel in the places of packed ones, one after the other, where there is a kernel."""
    packed = {path: module for path, module in network.named_modules() if isinstance(module, PackedLinear)}
    chosen = 0
    while packed:  # so that a module goes as soon as the next one is there
        path, module = packed.popitem()
        kernel = choose_kernel(module)
        if kernel is not None:
            network.set_submodule(path, kernel.eval())
            chosen += 1
    log.info("%d modules run by kernels of torch", chosen)
