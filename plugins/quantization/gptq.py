"""GPTQ."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, QuantizedMatrix

from .gptq_rounding import factor_hessian, note_tokens, round_columns
from .options import check_group, check_option, check_widths, choose_bits, offer_bits
from .rounding import RoundToNearest

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
    needs: ClassVar[frozenset[str]] = frozenset({"hessian", "tokens"})

    def offer(self, component: Component) -> Offer:
        check_group(self.name, self.group, least=1)
        check_widths(self.name, list(self.bits))
        check_option("gptq", "damping", self.damping, 0 < self.damping < math.inf, "positive and finite", "0.01")
        check_option("gptq", "block", self.block, self.block >= 1, "at least 1", "128")
        return offer_bits(self.name, list(self.bits), component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> QuantizedMatrix:
        (compressed,) = self.compress_each(weight, [amount], context)
        return compressed

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[QuantizedMatrix]:
        """`compress` at each of the amounts; R is computed once."""
        component, hessian = context.component, context.calibration["hessian"]
        widths = [choose_bits(self.name, self.offer(component), amount, component) for amount in amounts]
        tokens, columns = int(context.calibration["tokens"]), self.order_columns(hessian)
        note_tokens(component.name, tokens, len(columns))
        has_inputs = tokens > 0 and bool(hessian.any())
        factor = factor_hessian(hessian, self.damping, columns, component.name) if has_inputs else None
        for bits in widths:
            plain = RoundToNearest(bits, self.group).quantize(weight, component)
            yield plain if factor is None else round_columns(weight, plain, factor, columns, self.block)

    def order_columns(self, hessian: Tensor) -> Tensor:
        """Column indices in the order of rounding."""
        import torch

        sizes = hessian.diagonal()
        if self.order is Order.act:
            return sizes.argsort(descending=True, stable=True)
        return torch.arange(len(sizes), device=sizes.device)
