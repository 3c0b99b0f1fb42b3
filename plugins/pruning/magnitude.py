"""Pruning by magnitude."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer, Storage
from compressor.errors import ConfigError, ModelError

from .masks import PrunedWeight, lowest, lowest_of_matrix, lowest_of_matrix_each, lowest_of_rows, prune

if TYPE_CHECKING:
    from torch import Tensor


class Scope(enum.Enum):
    """The set in which weights are ranked: the whole matrix, or each output row (then all rows lose the same share)."""

    matrix = "matrix"
    row = "row"


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

    def check_options(self) -> None:
        if self.pattern:
            self.parse_pattern()

    def list_unused(self) -> Mapping[str, str]:
        return {"scope": "pattern"} if self.pattern else {}

    def offer(self, component: Component) -> Offer:
        if not self.pattern:
            return Offer(by_row=True)
        keep, of = self.parse_pattern()
        return Offer(levels=(1 - keep / of,))

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        self.offer(context.component).require(amount, self.name, context.component)
        importance = self.rank(weight, context.component)
        if self.pattern:
            mask = self.mask_pattern(importance)
        elif self.scope is Scope.row:
            mask = lowest(importance, round(amount * weight.shape[1]))
        else:
            mask = lowest_of_matrix(importance, amount)
        return prune(weight, mask, context.component)

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[CompressedWeight]:
        if self.pattern or self.scope is Scope.row:
            yield from super().compress_each(weight, amounts, context)
            return
        for mask in lowest_of_matrix_each(self.rank(weight, context.component), amounts):
            yield prune(weight, mask, context.component)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> PrunedWeight:
        self.offer(context.component).require_rows(amounts, self.name, context.component)
        mask = lowest_of_rows(self.rank(weight, context.component), amounts)
        return prune(weight, mask, context.component)

    def importance(self, weight: Tensor, context: Context) -> Tensor | None:
        """|w|; None with a `pattern`, which does not prune weights one by one."""
        return None if self.pattern else self.rank(weight, context.component)

    def rank(self, weight: Tensor, component: Component) -> Tensor:
        """|w| `[out, in]`; raises ModelError for NaN, which has no rank."""
        importance = weight.abs()
        if importance.isnan().any():
            raise ModelError(
                f"weight of `{component.name}` contains NaN; every weight must be a number, repair the checkpoint"
            )
        return importance

    def parse_pattern(self) -> tuple[int, int]:
        """`pattern` as (N, M); raises ConfigError."""
        match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", self.pattern)
        keep, of = map(int, match.groups()) if match else (0, 0)
        if not 1 <= keep < of:
            raise ConfigError(
                f"`compressor.magnitude.pattern` must be N:M with 1 <= N < M, got {self.pattern!r}; "
                "give for example '2:4' (YAML needs the quotes)"
            )
        return keep, of

    def mask_pattern(self, importance: Tensor) -> Tensor:
        """True for the weights to prune: all except the N largest of every M neighbours in a row."""
        import torch

        keep, of = self.parse_pattern()
        out, width = importance.shape
        whole = width // of * of
        groups, tail = importance[:, :whole].reshape(out, -1, of), importance[:, whole:]
        rest = width - whole
        masks = [lowest(groups, of - keep).view(out, whole), lowest(tail, rest - -(-keep * rest // of))]
        return torch.cat(masks, dim=1)
