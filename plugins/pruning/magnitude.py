"""Pruning by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Context

from ..weight_checks import check_ranked
from .pruner import RankedPruner

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Magnitude(RankedPruner):
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

    name: ClassVar[str] = "magnitude"

    def rank(self, weight: Tensor, context: Context) -> Tensor:
        """|w| `[out, in]`; raises ModelError for NaN."""
        return check_ranked(weight.abs(), context.component)
