"""AbsMax int4 in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Compressor, Context
from compressor.values import Component, Offer

from .integers import IntegerWeight, check_group, choose_bits, offer_bits, round_to_grid

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Int4(Compressor):
    """4-bit integers by round to nearest, one scale for each `group` of neighbours along `in` of `[out, in]`.

    s = max|w| / 7, q = clamp(round(w / s), ±7), ŵ = s · q; ties round to even, the last group of a row may be shorter.
    The amount is 1 − 4 / stored bits; scales come on top and are counted.

    Source: the round-to-nearest baseline of Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323), here symmetric.
    """

    group: int = 32

    name: ClassVar[str] = "int4"

    def offer(self, component: Component) -> Offer:
        check_group(self.name, self.group, least=1)
        return offer_bits(self.name, [4], component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> IntegerWeight:
        bits = choose_bits(self.name, self.offer(context.component), amount, context.component)
        return round_to_grid(weight, bits, self.group, len(weight), context.component)
