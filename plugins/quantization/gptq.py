"""GPTQ: rounding to integers with error compensation."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, QuantizedMatrix, Storage, working_dtype

from ..calibration_warnings import warn_of_few_tokens, warn_of_tokens
from ..hessian_factor import factor_hessian
from ..options import check_option
from .options import check_widths, choose_bits, offer_bits
from .rounding import RoundToNearest, find_bounds, round_within

if TYPE_CHECKING:
    from torch import Tensor


class Order(enum.Enum):
    """The order in which columns are rounded: largest mean squared input first (`act`), or by index (`none`)."""

    act = "act"
    none = "none"


@dataclass
class Gptq(Compressor):
    """Rounds to integers of b bits (b in `bits`) column by column; later columns compensate earlier rounding errors.

    For a weight `[out, in]` with H = Σ x xᵀ / n of its inputs, the error of a row is (w − ŵ) H (w − ŵ)ᵀ, the mean
    squared change of its output. With R upper triangular, R Rᵀ = H + λI and λ = `damping` · mean(diag H),

        q_j = clamp(round((w_j + Σ_{i<j} (w_i − ŵ_i) R_ij / R_jj) / s), −2^(b−1), 2^(b−1) − 1),  ŵ_j = s q_j,

    makes element j of (w − ŵ) R as small as column j can make it. The scales s = max|w| / (2^(b−1) − ½) are those of
    round to nearest on the original weight. Each `group` of neighbours along `in` has one; the last group of a row may
    be shorter. The scales do not depend on the `order` of the columns, so groups are stored together in any order.
    `block` columns are rounded before their errors are added to later columns in one product, which only saves time.
    With `sequential`, the inputs come from a model whose earlier layers are compressed, when a plan is kept.

    A column whose input is always 0 is rounded to nearest, because H has no information on it. So is a component that
    no token reached. The amount of b is 1 − b / stored bits. Scales are stored in addition, and counted.

    Source: Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323). The paper updates later columns with the inverse of H,
    which is equivalent (Chen et al., The Geometry of LLM Quantization, 2025, arXiv 2507.18553), sets columns without
    input to 0, and computes scales when it reaches a group; its code has original scales with `static_groups`.
    """

    bits: list[int] = field(default_factory=lambda: [4])
    group: int = 128
    damping: float = 0.01
    order: Order = Order.act
    block: int = 128
    sequential: bool = True

    name: ClassVar[str] = "gptq"
    stored_as: ClassVar[Storage] = Storage.integers
    needs: ClassVar[frozenset[str]] = frozenset({"hessian", "tokens"})

    def check_options(self) -> None:
        check_option(self, "group", self.group >= 1, "at least 1", "32")
        check_widths(self, self.bits)
        check_option(self, "damping", 0 < self.damping < math.inf, "positive and finite", "0.01")
        check_option(self, "block", self.block >= 1, "at least 1", "128")

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return offer_bits(self, self.bits, component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> QuantizedMatrix:
        (compressed,) = self.compress_each(weight, [amount], context)
        return compressed

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[QuantizedMatrix]:
        """`compress` at each of the amounts; R is computed once."""
        component, hessian = context.component, context.calibration["hessian"]
        widths = [choose_bits(self, amount, component) for amount in amounts]
        # Columns of equal size stay in the order of their indices.
        sizes = hessian.diagonal() if self.order is Order.act else hessian.new_zeros(len(hessian))
        tokens, columns = int(context.calibration["tokens"]), sizes.argsort(descending=True, stable=True)
        warn_of_tokens(self.name, component.name, tokens, "rounded to nearest")
        warn_of_few_tokens(self.name, component.name, tokens, len(columns))
        has_inputs = tokens > 0 and bool(hessian.any())
        factor = None
        if has_inputs:
            factor = factor_hessian(hessian, self.damping, columns, self.name, component.name)
            factor /= factor.diagonal().clone()
        for bits in widths:
            plain = RoundToNearest(bits, self.group).quantize(weight, component)
            yield plain if factor is None else round_columns(weight, plain, factor, columns, self.block)


def round_columns(weight: Tensor, plain: QuantizedMatrix, factor: Tensor, order: Tensor, block: int) -> QuantizedMatrix:
    """Round the columns of `weight` `[out, in]` one by one in the `order`, on the grid of `plain`, with compensation.

    With w_j the original column, s_j its scales and F the `factor` R / diag(R), in that order,

        q_j = clamp(round((w_j + Σ_{i before j} F_ij (w_i − ŵ_i)) / s_j), −2^(b−1), 2^(b−1) − 1),

    ŵ_j = s_j q_j in the dtype of the weight. Errors of earlier blocks are added in one product for a whole `block`.
    Columns are held as rows, which are contiguous in memory.
    """
    import torch

    compute = working_dtype(weight.dtype)
    # Columns that are done hold their error, the others their weight.
    left, factor = weight.to(compute).mT[order], factor.to(compute)
    found = torch.empty_like(left, dtype=torch.int8)
    bounds = find_bounds(plain.scales, None, plain.integer_bits, plain.dtype)
    scales, lowest, highest = (part.to(compute).mT.contiguous() for part in (plain.scales, *bounds))
    places = (order // plain.group).tolist()
    for start in range(0, len(left), block):
        end = min(start + block, len(left))
        moved = left[start:end].addmm(factor[:start, start:end].mT, left[:start])
        for j in range(start, end):
            target = moved[j - start].addmv(left[start:j].mT, factor[start:j, j])
            place = places[j]
            integers = round_within(target, scales[place], None, (lowest[place], highest[place]))
            left[j] -= (scales[place] * integers).to(weight.dtype)
            found[j] = integers
    integers = torch.empty_like(plain.integers)
    integers[:, order] = found.mT
    return replace(plain, integers=integers)
