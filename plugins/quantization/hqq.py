"""Half-quadratic quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    Offer,
    Storage,
    dequantize,
    join_groups,
    split_groups,
    working_dtype,
)

from ..options import check_option
from .options import check_widths, choose_bits, offer_bits
from .rounding import find_range, fit_range, keep_better, round_groups, scales_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MOST_ITERATIONS = 10_000
"""The updates of zero points stop changing long before."""


@dataclass(frozen=True, eq=False)
class FloatZerosWeight(CompressedWeight):
    """ŵ = s · (q − z) with floating-point zero points z, which the integer formats of an export cannot hold.

    `integers` q `[out, in]` int8 in [−2^(b−1), 2^(b−1) − 1], b = `integer_bits`; `scales` s and `zeros` z
    `[out, group]` of the same dtype. `group` neighbours along `in` share both; the last group of a row may be shorter.
    The range of q is centred on 0, so z is near 0, where a float has small rounding errors.
    """

    integers: Tensor
    scales: Tensor
    zeros: Tensor
    group: int
    integer_bits: int
    dtype: torch.dtype

    def dense(self) -> Tensor:
        groups = split_groups(self.integers, len(self.scales), self.group)
        return join_groups(dequantize(groups, self.scales, self.zeros, self.dtype), self.integers.shape)

    @property
    def bits(self) -> int:
        return self.integers.numel() * self.integer_bits + 8 * (self.scales.nbytes + self.zeros.nbytes)


@dataclass
class Hqq(Compressor):
    """Integers of b bits (b in `bits`) with zero points that minimise Σ|w − ŵ|^p, which is robust to outliers.

    ŵ = s · (q − z). Each `group` of neighbours along `in` of `[out, in]` has one s and one z; the last group of a row
    may be shorter. s covers the range of the group, zero included, and is fixed. z starts at the end of the range and
    is updated `iterations` times; e is the error attributed to outliers:

        q = clamp(round(w / s + z), −2^(b−1), 2^(b−1) − 1)
        e = sign(x) · max(0, |x| − |x|^(p−1) / β)  where x = w − ŵ
        z = mean(q − (w − e) / s),  β ← κ · β

    p is `lp_norm`; `beta` is the first β and `kappa` its growth factor, in units of the weights. Errors below
    β^(−1/(2−p)), 0.17 by default, give e = 0; z then only removes the mean error. Each group keeps the stored z with
    the least Σ|w − ŵ|^p, so no group is worse than round to nearest at the start. z is a float as wide as a scale; a
    weight of zero may change. The amount of b is 1 − b / stored bits. Scales and zero points are stored in addition,
    and counted.

    Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023
    (mobiusml.github.io/hqq_blog), with its defaults. There the search ends for the whole matrix at once, and the range
    need not include zero.
    """

    bits: list[int] = field(default_factory=lambda: [4])
    group: int = 64
    lp_norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20

    name: ClassVar[str] = "hqq"
    stored_as: ClassVar[Storage] = Storage.other

    def check_options(self) -> None:
        check_option(self, "group", self.group >= 1, "at least 1", "32")
        check_widths(self, self.bits)
        check_option(self, "lp_norm", 0 < self.lp_norm <= 1, "in (0, 1]", "0.7")
        check_option(self, "beta", 0 < self.beta < math.inf, "positive and finite", "10")
        check_option(self, "kappa", 1 <= self.kappa < math.inf, "finite and at least 1", "1.01")
        check_option(self, "iterations", 1 <= self.iterations <= MOST_ITERATIONS, f"from 1 to {MOST_ITERATIONS}", "20")

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return offer_bits(self, self.bits, component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> FloatZerosWeight:
        component, dtype = context.component, weight.dtype
        bits = choose_bits(self, amount, component)
        groups = split_groups(weight.to(working_dtype(dtype)), len(weight), self.group)
        lowest, highest = find_range(groups, component)
        # A short last group is padded; the padding must not count.
        counts = split_groups(groups.new_ones(1, weight.shape[1]), 1, self.group)
        scales, start = fit_range(lowest, highest, bits, scales_dtype(weight, component), dtype)
        zeros = self.search_zeros(groups, counts, scales, start, bits, dtype)
        integers = round_groups(groups, scales, zeros, bits, dtype).char()
        return FloatZerosWeight(join_groups(integers, weight.shape), scales, zeros, self.group, bits, dtype)

    def search_zeros(
        self, groups: Tensor, counts: Tensor, scales: Tensor, start: Tensor, bits: int, dtype: torch.dtype
    ) -> Tensor:
        """The best z `[rows, group]`, in the dtype of `scales`; `counts` is 0 where `groups` are padded."""
        import torch

        steps, zeros, beta = scales.to(groups.dtype)[..., None], start.to(scales.dtype), self.beta
        best: tuple[Tensor, ...] = ()
        for _ in range(self.iterations + 1):
            integers = round_groups(groups, scales, zeros, bits, dtype)
            error = groups - dequantize(integers, scales, zeros, dtype).to(groups.dtype)
            size = error.abs()
            power = size**self.lp_norm
            found = ((counts * power).sum(-1), zeros)
            best = keep_better(best, found) if best else found
            # |x|^(p−1) without a second power (powers take most of the time) and without dividing by zero.
            shrunk = size - power / size.clamp(min=torch.finfo(size.dtype).tiny) / beta
            outliers = error.sign() * shrunk.clamp(min=0)
            zeros = (counts * (integers - (groups - outliers) / steps)).sum(-1) / counts.sum(-1)
            zeros, beta = zeros.to(scales.dtype), self.kappa * beta
        return best[1]
