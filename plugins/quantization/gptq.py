"""GPTQ."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, QuantizedMatrix
from compressor.errors import ConfigError

from .gptq_rounding import factor_hessian, note_tokens, round_columns
from .options import check_group, check_widths, choose_bits, offer_bits
from .rounding import RoundToNearest

if TYPE_CHECKING:
    from torch import Tensor


class Order(enum.Enum):
    """Which columns are rounded first: those with the largest inputs, or as they come."""

    act = "act"
    none = "none"


@dataclass
class Gptq(Compressor):
    """Integers of b bits, b among `bits`, rounded column by column; what is left makes up for the error so far.

    For `[out, in]` with H = Σ x xᵀ / n of its inputs, a row's error is (w − ŵ) H (w − ŵ)ᵀ, the mean square of what it
    changes in the output. With R upper triangular, R Rᵀ = H + λI and λ = `damping` · mean(diag H), columns j go

        q_j = clamp(round((w_j + Σ_{i<j} (w_i − ŵ_i) R_ij / R_jj) / s), −2^(b−1), 2^(b−1) − 1),  ŵ_j = s q_j,

    for (w − ŵ) R then is as small in its element j as this column can make it. Scales s = max|w| / (2^(b−1) − ½) are
    those of round to nearest, of the weight as it was: one for each `group` of neighbours along `in`, the last of a row
    may be shorter. So they do not depend on the `order`, and groups stay together in what is stored when columns are
    taken by their mean squared input, the largest first (`act`). `block` is how many columns are done before errors
    are carried on in one product, which only saves time. `sequential` means that inputs are those of a model whose
    lower layers are compressed, where a plan is kept.

    A column whose input was always 0 is rounded to nearest: H says nothing of it, but on another text it may count.
    So is a component that no token reached. The amount of b is 1 − b / stored bits; scales come on top and are counted.

    Source: Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323). There columns to come are moved by the inverse of H,
    which gives the same (Chen et al., The Geometry of LLM Quantization, 2025, arXiv 2507.18553), columns without input
    are set to 0, and scales are found when a group is reached; its code has scales of the weight as it was for
    `static_groups`.
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
        for option, value, fits, rule, example in (
            ("damping", self.damping, 0 < self.damping < math.inf, "positive and finite", "0.01"),
            ("block", self.block, self.block >= 1, "at least 1", "128"),
        ):
            if not fits:
                raise ConfigError(f"`compressor.gptq.{option}` must be {rule}, got {value}; give for example {example}")
        return offer_bits(self.name, list(self.bits), component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> QuantizedMatrix:
        (compressed,) = self.compress_each(weight, [amount], context)
        return compressed

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[QuantizedMatrix]:
        """All amounts share R."""
        component, hessian = context.component, context.calibration["hessian"]
        widths = [choose_bits(self.name, self.offer(component), amount, component) for amount in amounts]
        tokens, columns = int(context.calibration["tokens"]), self.order_columns(hessian)
        note_tokens(component.name, tokens, len(columns))
        knows = tokens > 0 and bool(hessian.any())
        factor = factor_hessian(hessian, self.damping, columns, component.name) if knows else None
        for bits in widths:
            plain = RoundToNearest(bits, self.group).quantize(weight, component)
            yield plain if factor is None else round_columns(weight, plain, factor, columns, self.block)

    def order_columns(self, hessian: Tensor) -> Tensor:
        """The numbers of the columns, in the order in which they are rounded."""
        import torch

        sizes = hessian.diagonal()
        if self.order is Order.act:
            return sizes.argsort(descending=True, stable=True)
        return torch.arange(len(sizes), device=sizes.device)
