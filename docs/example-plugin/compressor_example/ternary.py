"""Ternary weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor import Compressor, CompressorError
from compressor.contracts import Component, Context, Offer, QuantizedMatrix

if TYPE_CHECKING:
    from torch import Tensor

BITS = 2


@dataclass
class Ternary(Compressor):
    """Every weight becomes −s, 0 or +s, with one s for each output row of `[out, in]`.

    Δ = threshold · mean|w|,  ŵ = s · sign(w) where |w| > Δ, else 0,  s = mean of the |w| above Δ

    Δ and s belong to a row. The amount is 1 − 2 / stored bits; the scales come on top and are counted.

    Source: Li and Liu, Ternary Weight Networks, 2016 (arXiv 1605.04711), equations 5 and 6.
    """

    threshold: float = 0.7

    name: ClassVar[str] = "ternary"

    def offer(self, component: Component) -> Offer:
        if not 0 <= self.threshold < 1:
            raise CompressorError(
                f"`compressor.ternary.threshold` must be in [0, 1), got {self.threshold:g}; give for example 0.7"
            )
        return Offer(levels=(1 - BITS / component.stored_bits,))

    def compress(self, weight: Tensor, amount: float, context: Context) -> QuantizedMatrix:
        magnitude = weight.float().abs()
        kept = magnitude > self.threshold * magnitude.mean(1, keepdim=True)
        count = kept.sum(1, keepdim=True).clamp(min=1)
        scales = (magnitude * kept).sum(1, keepdim=True) / count
        signs = (weight.sign() * kept).char()
        return QuantizedMatrix(signs, scales.to(weight.dtype), BITS, group=0, dtype=weight.dtype)
