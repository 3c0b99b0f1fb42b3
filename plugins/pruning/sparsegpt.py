"""SparseGPT: pruning with error compensation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import CompressedWeight, Context, working_dtype

from ..calibration_warnings import warn_of_few_tokens, warn_of_tokens
from ..hessian_factor import factor_hessian
from ..options import check_option
from ..weight_checks import check_finite
from .masks import PrunedWeight, prune
from .pruner import Pruner

if TYPE_CHECKING:
    from torch import Tensor

Choose = Callable[..., "Tensor"]
"""Importance `[out, column]`, and `start`, the index of its first column -> true for the weights to prune."""


@dataclass
class SparseGpt(Pruner):
    """Prunes column by column; later columns compensate the errors of earlier ones.

    For a weight `[out, in]` with H = Σ x xᵀ / n of its inputs, the error of a row is (w − ŵ) H (w − ŵ)ᵀ, the mean
    squared change of its output. With R upper triangular, R Rᵀ = H + λI and λ = `damping` · mean(diag H), column j
    with the errors of earlier columns made up for is

        c_j = w_j + Σ_{i<j} (w_i − ŵ_i) R_ij / R_jj,  ŵ_j = 0 where the mask is set, ŵ_j = c_j elsewhere.

    ŵ_j = 0 adds (c_j R_jj)² to the error, so this is the importance. Masks are chosen for a `block` of columns at a
    time, when all earlier columns are done, by the weights of the block that together make up for them. A block loses
    the smallest of it, so that the matrix loses round(a · n) of its n weights. With `scope=row`, and with amounts per
    row, each row of a block loses its own share. `pattern` N:M keeps the N most important of every M neighbours, chosen
    when the first of them is reached.

    The amount a is the sparsity after pruning: a weight that was zero before counts and stays zero. Weights of an input
    that is always 0 are pruned first, and get no compensation. A component that no token reached is pruned by |w|. With
    `sequential`, the inputs come from a model whose earlier layers are compressed, when a plan is kept.

    Source: Frantar & Alistarh, SparseGPT, ICML 2023 (arXiv 2301.00774). The paper updates later columns with the
    inverse of H, which is equivalent: 1 / R_jj is the diagonal of the Cholesky factor of the inverse. It sets every
    weight of an input that is always 0 to zero, whatever the amount.
    """

    block: int = 128
    damping: float = 0.01
    sequential: bool = True

    name: ClassVar[str] = "sparsegpt"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian", "tokens"})

    def check_options(self) -> None:
        super().check_options()
        check_option(self, "block", self.block >= 1, "at least 1", "128")
        check_option(self, "damping", 0 < self.damping < math.inf, "positive and finite", "0.01")

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        (compressed,) = self.compress_each(weight, [amount], context)
        return compressed

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[PrunedWeight]:
        """`compress` at each of the amounts; R is computed once."""
        offer = self.offer(context.component)
        for amount in amounts:
            offer.require(amount, self.name, context.component)
        factor = self.find_factor(weight, context)
        for amount in amounts:
            yield self.prune(weight, factor, partial(self.selection.find_mask, amount=amount), context)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        self.offer(context.component).require_rows(amounts, self.name, context.component)
        choose = partial(self.selection.find_row_mask, amounts=amounts)
        return self.prune(weight, self.find_factor(weight, context), choose, context)

    def find_factor(self, weight: Tensor, context: Context) -> Tensor | None:
        """R of the inputs; None if no token reached the component. Raises ModelError for NaN and infinity."""
        import torch

        component, hessian = context.component, context.calibration["hessian"]
        check_finite(weight, component)
        tokens, width = int(context.calibration["tokens"]), len(hessian)
        warn_of_tokens(self.name, component.name, tokens, "pruned by magnitude")
        warn_of_few_tokens(self.name, component.name, tokens, width)
        if not tokens or not hessian.any():
            return None
        order = torch.arange(width, device=hessian.device)
        return factor_hessian(hessian, self.damping, order, self.name, component.name)

    def prune(self, weight: Tensor, factor: Tensor | None, choose: Choose, context: Context) -> PrunedWeight:
        """`weight` with the mask of `choose`; without a `factor` of the inputs, that of |w| and no compensation."""
        if factor is None:
            return prune(weight, choose(weight.abs(), start=0), context.component)
        is_dead = context.calibration["hessian"].diagonal() == 0
        # A pattern is chosen for M columns at a time, and a block holds whole groups of M.
        group = self.selection.parse_pattern()[1] if self.pattern else self.block
        block = max(1, self.block // group) * group
        pruned = prune_columns(weight, factor, is_dead, choose, block, group)
        # A weight that did not change keeps its bits, the sign of a zero too.
        return PrunedWeight(weight.where(pruned == weight, pruned), context.component.stored_bits)


def prune_columns(weight: Tensor, factor: Tensor, is_dead: Tensor, choose: Choose, block: int, group: int) -> Tensor:
    """ŵ `[out, in]`, zero where `weight` was zero and at the masks of `choose`.

    Masks are chosen for a `group` of columns at a time; it divides `block`, whose errors are added to later columns in
    one product. Errors are w − ŵ with ŵ in the dtype of the weight. Columns are held as rows, which are contiguous in
    memory.
    """
    import torch

    compute = working_dtype(weight.dtype)
    # Columns that are done hold their error, the others their weight.
    left, factor = weight.mT.to(compute, copy=True, memory_format=torch.contiguous_format), factor.to(compute)
    sizes = factor.diagonal().square().masked_fill(is_dead, 0)[:, None]
    factor = factor / factor.diagonal()
    found, was_zero = torch.empty_like(left, dtype=weight.dtype), left == 0
    mask = was_zero.clone()
    for start in range(0, len(left), block):
        end = min(start + block, len(left))
        moved = left[start:end].addmm(factor[:start, start:end].mT, left[:start])
        for j in range(start, end):
            if (j - start) % group == 0:
                stop = min(j + group, end)
                values = moved[j - start : stop - start].addmm(factor[start:j, j:stop].mT, left[start:j])
                # So far each column makes up for earlier groups alone; together they are (w − ŵ) R_before R_group⁻¹.
                group_factor, weights = factor[j:stop, j:stop].mT, left[j:stop]
                values = weights + torch.linalg.solve_triangular(
                    group_factor, values - weights, upper=False, unitriangular=True
                )
                # Weights that were zero come first.
                importance = (values.square() * sizes[j:stop]).masked_fill(was_zero[j:stop], -1)
                mask[j:stop] |= choose(importance.mT, start=j).mT
            compensated = moved[j - start].addmv(left[start:j].mT, factor[start:j, j])
            found[j] = compensated.masked_fill(mask[j], 0)
            left[j] -= found[j]
    return found.mT
