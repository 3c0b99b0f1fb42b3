"""Int4 in groups, symmetric or with zero points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, QuantizedMatrix, Storage

from ..options import check_option
from .options import choose_bits, offer_bits
from .rounding import RoundToNearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Int4(Compressor):
    """4-bit integers by round to nearest, one scale for each `group` of neighbours along `in` of `[out, in]`.

    s = max|w| / 7.5, q = clamp(round(w / s), −8, 7), ŵ = s · q. Ties round to even; the last group of a row may be
    shorter. All 16 integers are used, as in compressed-tensors. If it is not `symmetric`, each group also has a 4-bit
    zero point:

        s = (max(w, 0) − min(w, 0)) / 15,  z = round(−8 − min(w, 0) / s),
        q = clamp(round(w / s + z), −8, 7),  ŵ = s · (q − z).

    `clip` cuts off outliers of a group to get a finer grid: max|w|, or both ends of the range, are multiplied by the c
    in {1, 0.975, …, 0.5} with the least Σ(w − ŵ)² in the group. A weight of zero always stays zero. The amount is
    1 − 4 / stored bits. Scales and zero points are stored in addition, and counted.

    Source: the round-to-nearest baselines of Frantar et al., GPTQ, ICLR 2023 (arXiv 2210.17323). The search over
    clipped ranges is from Lin et al., AWQ, MLSys 2024 (arXiv 2306.00978), here with the error of the weights alone.
    """

    group: int = 32
    symmetric: bool = True
    clip: bool = False

    name: ClassVar[str] = "int4"
    stored_as: ClassVar[Storage] = Storage.integers

    def check_options(self) -> None:
        check_option(self, "group", self.group >= 1, "at least 1", "32")

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return offer_bits(self, [4], component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> QuantizedMatrix:
        bits = choose_bits(self, amount, context.component)
        rounding = RoundToNearest(bits, self.group, zero_points=not self.symmetric, clip=self.clip)
        return rounding.quantize(weight, context.component)
