"""Random pruning: a baseline that every other criterion should beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, Storage

from .masks import PrunedWeight, lowest_of_matrix, lowest_of_rows, prune

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Random(Compressor):
    """Sets weights at random positions to zero, whatever their value.

    ŵ = 0 at the round(a · n) smallest of u ~ U(0, 1] drawn for each of the n weights, ŵ = w elsewhere. Weights that
    were zero before have u = 0, so they count and come first. The draws depend only on the run's seed and the
    component's name. So the zeros of a larger amount include those of a smaller one, on every device. With amounts per
    row, round(a_r · in) weights of row r of `[out, in]` become zero.
    """

    name: ClassVar[str] = "random"
    stored_as: ClassVar[Storage] = Storage.dense

    def offer(self, component: Component) -> Offer:
        return Offer(by_row=True)

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        self.offer(context.component).require(amount, self.name, context.component)
        return prune(weight, lowest_of_matrix(self.importance(weight, context), amount), context.component)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> PrunedWeight:
        self.offer(context.component).require_rows(amounts, self.name, context.component)
        counts = [round(amount * weight.shape[1]) for amount in amounts]
        return prune(weight, lowest_of_rows(self.importance(weight, context), counts), context.component)

    def importance(self, weight: Tensor, context: Context) -> Tensor:
        """u `[out, in]`; 0 where the weight is already zero."""
        import torch

        digest = hashlib.sha256(f"{context.seed}/{context.component.name}".encode()).digest()
        # The generator is on the CPU, because other devices would draw other numbers.
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        drawn = 1 - torch.rand(weight.shape, generator=generator)
        return drawn.to(weight.device).masked_fill(weight == 0, 0)
