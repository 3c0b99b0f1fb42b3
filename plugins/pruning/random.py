"""Pruning at random: the baseline that every criterion must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer

from .masks import PrunedWeight, lowest_of_matrix, lowest_of_rows, prune

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Random(Compressor):
    """Zeroes weights at random positions, whatever they hold.

    ŵ = 0 at the round(a · n) smallest of u ~ U(0, 1] drawn for each of the n weights, ŵ = w elsewhere. Weights that
    are zero already have u = 0, so they count and go first. The draws come from the run's seed and the component's
    name alone: a larger amount's zeros include a smaller one's, on every device. With amounts per row, row r of
    `[out, in]` loses round(a_r · in) of its own.
    """

    name: ClassVar[str] = "random"

    def offer(self, component: Component) -> Offer:
        return Offer(by_row=True)

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        self.offer(context.component).require(amount, self.name, context.component)
        return prune(weight, lowest_of_matrix(self.importance(weight, context), amount), context.component)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> PrunedWeight:
        self.offer(context.component).require_rows(amounts, self.name, context.component)
        return prune(weight, lowest_of_rows(self.importance(weight, context), amounts), context.component)

    def importance(self, weight: Tensor, context: Context) -> Tensor:
        """u `[out, in]`, 0 where the weight is zero already."""
        import torch

        digest = hashlib.sha256(f"{context.seed}/{context.component.name}".encode()).digest()
        # A generator of the CPU, because other devices would draw other numbers.
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        drawn = 1 - torch.rand(weight.shape, generator=generator)
        return drawn.to(weight.device).masked_fill(weight == 0, 0)
