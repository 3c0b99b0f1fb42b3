"""Round to nearest at several widths; a schedule chooses one for each component."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, QuantizedMatrix, Storage

from ..options import check_option
from .options import check_widths, choose_bits, offer_bits
from .rounding import RoundToNearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Rtn(Compressor):
    """Integers of b bits (b in `bits`) by round to nearest, one scale for each `group` of neighbours along `in`.

    s = max|w| / (2^(b−1) − ½), q = clamp(round(w / s), −2^(b−1), 2^(b−1) − 1), ŵ = s · q. Ties round to even; the last
    group of a row of `[out, in]` may be shorter. The amount of b is 1 − b / stored bits. Scales are stored in addition,
    and counted.

    Source: the round-to-nearest baseline of Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323), here symmetric.
    """

    bits: list[int] = field(default_factory=lambda: [2, 3, 4, 6, 8])
    group: int = 32

    name: ClassVar[str] = "rtn"
    stored_as: ClassVar[Storage] = Storage.integers

    def check_options(self) -> None:
        check_option(self, "group", self.group >= 1, "at least 1", "32")
        check_widths(self, self.bits)

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return offer_bits(self, self.bits, component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> QuantizedMatrix:
        bits = choose_bits(self, amount, context.component)
        return RoundToNearest(bits, self.group).quantize(weight, context.component)
