"""Pruning by magnitude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer, Storage

from ..weight_checks import check_ranked
from .masks import PrunedWeight
from .selection import Scope, Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Magnitude(Compressor):
    """Sets the smallest |w| to zero.

    ŵ = 0 at the round(a · n) smallest |w| of each set of n weights, ŵ = w elsewhere. The set is the matrix or a row, by
    `scope`. The amount a is the sparsity after pruning: weights that were zero before count too. Among equal |w| the
    lowest index is pruned first, so the zeros of a larger amount include those of a smaller one. With amounts per row,
    the round(a_r · in) smallest |w| of row r of `[out, in]` become zero, whatever the `scope`.

    `pattern` N:M (such as 2:4) keeps the N largest |w| of every M neighbours along `in` of `[out, in]`, and
    ⌈N · n / M⌉ of a shorter last group of n. `scope` then has no effect, and 1 − N/M is the only amount.

    Source: Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015; N:M after
    Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (arXiv 2104.08378).
    """

    scope: Scope = Scope.matrix
    pattern: str = ""

    name: ClassVar[str] = "magnitude"
    stored_as: ClassVar[Storage] = Storage.dense

    @property
    def selection(self) -> Selection:
        return Selection(self.name, self.scope, self.pattern)

    def check_options(self) -> None:
        self.selection.check_options()

    def list_unused(self) -> Mapping[str, str]:
        return self.selection.list_unused()

    def offer(self, component: Component) -> Offer:
        return self.selection.offer()

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        importance = self.rank(weight, context.component)
        return self.selection.prune(weight, importance, amount, context.component)

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[CompressedWeight]:
        importance = self.rank(weight, context.component)
        yield from self.selection.prune_each(weight, importance, amounts, context.component)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> PrunedWeight:
        importance = self.rank(weight, context.component)
        return self.selection.prune_rows(weight, importance, amounts, context.component)

    def importance(self, weight: Tensor, context: Context) -> Tensor | None:
        """|w|; None with a `pattern`, which does not prune weights one by one."""
        return None if self.pattern else self.rank(weight, context.component)

    def rank(self, weight: Tensor, component: Component) -> Tensor:
        """|w| `[out, in]`; raises ModelError for NaN."""
        return check_ranked(weight.abs(), component)
