"""Products of integers: weights of 8 bits with inputs that are rounded to 8 bits in the scored model too.

The rule: `torch._int_mm` multiplies them on a CPU, in float32, bfloat16 and float16 and for any number of rows, where
the matrix or each of its rows has a scale. It also takes inputs of one number (`in` = 1), and their sums are wrong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compressor.contracts import Strategy
from compressor.export.loading.packed_linear import StoredLinear, decode
from compressor.inference.kernels import ROWS, KernelLinear

WIDTHS = range(2, 2**17)
"""`in`, for which int32 can add up products of two bytes, each up to 2^14."""


class IntegerLinear(KernelLinear):
    """s_x s_w Σ q_x q_w `[…, out]` of int8 q_w `[out, in]`, s_w `[1]` or `[out]`, and inputs x̂ = s_x q_x by token.

    Sums are exact, in int32; they are scaled in float32, and rounded to the dtype of the inputs at last. In the scored
    product it is x̂ and ŵ = s_w q_w that are rounded to that dtype, and the sums.
    """

    dtypes, most_rows = (torch.float32, torch.bfloat16, torch.float16), math.inf
    integers: Tensor
    scales: Tensor

    @classmethod
    def serves(cls, module: StoredLinear) -> bool:
        scheme = module.scheme
        plain = scheme.symmetric and scheme.strategy is not Strategy.group
        return scheme.inputs is not None and plain and module.in_features in WIDTHS

    def __init__(self, module: StoredLinear) -> None:
        super().__init__(module)
        self.register_buffer("integers", module.read_integers())
        self.register_buffer("scales", module.weight_scale.flatten())

    @property
    def weight(self) -> Tensor:
        return decode(self.integers, self.scales[:, None])

    def multiply(self, inputs: Tensor) -> Tensor:
        assert self.rounding is not None, "asked by `serves`"
        integers, scales = self.rounding.split(inputs)
        product = self.add_up(integers.to(torch.int8)) * scales.float()
        return product.mul_(self.scales.float())

    def add_up(self, integers: Tensor) -> Tensor:
        """Σ q_x q_w int32 `[row, out]` of int8 q_x `[row, in]`."""
        return torch._int_mm(integers, self.integers.T)

    def agrees(self, weight: Tensor) -> bool:
        """Are sums exact, the largest that there are too? A machine without instructions for them may cut them off."""
        draw = torch.Generator().manual_seed(0)
        drawn = torch.randint(-128, 128, (ROWS, self.in_features), generator=draw, dtype=torch.int8)
        largest = (self.integers[:ROWS] >> 7) ^ 127  # 127 and −128, as the sign is
        probes = torch.cat([drawn, largest])
        parts = self.integers.split(1024)  # for numbers of 64 bits take room
        sums = torch.cat([probes.double() @ part.double().T for part in parts], dim=1)
        return all(torch.equal(self.add_up(probes[first:]).double(), sums[first:]) for first in (0, -1))
