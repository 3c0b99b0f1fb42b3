"""Wanda: pruning by weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Context

from ..calibration_warnings import warn_of_tokens
from ..weight_checks import check_ranked
from .pruner import RankedPruner
from .selection import Scope

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Wanda(RankedPruner):
    """Sets the smallest |w_ij| · √(mean x_j²) to zero, where x_j is input j of the component.

    The root mean square is ‖x_j‖₂ / √n over the n calibration tokens, which gives the same order in a matrix as
    ‖x_j‖₂. ŵ = 0 at the round(a · m) smallest of each set of m weights, ŵ = w elsewhere. The set is a row or the
    matrix, by `scope`. The amount a is the sparsity after pruning: weights that were zero before count too. Among
    equal importance the lowest index is pruned first. With amounts per row, the round(a_r · in) smallest of row r of
    `[out, in]` become zero, whatever the `scope`. `pattern` N:M keeps the N largest of every M neighbours, as in
    `magnitude`. With `sequential`, the inputs come from a model whose earlier layers are compressed, when a plan is
    kept.

    Weights of an input that is always 0 are pruned first, the smallest |w| first, but after weights that are zero. A
    component that no token reached is pruned by |w|.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024 (arXiv 2306.11695).
    """

    scope: Scope = Scope.row
    sequential: bool = True

    name: ClassVar[str] = "wanda"
    needs: ClassVar[frozenset[str]] = frozenset({"second_moment", "tokens"})

    def rank(self, weight: Tensor, context: Context) -> Tensor:
        """|w_ij| · √(mean x_j²) `[out, in]`, in float32 at least; raises ModelError for NaN."""
        import torch

        component, second_moment = context.component, context.calibration["second_moment"]
        tokens = int(context.calibration["tokens"])
        warn_of_tokens(self.name, component.name, tokens, "pruned by magnitude")
        smallest = torch.finfo(second_moment.dtype).tiny  # so that an input of 0 still ranks its weights by |w|
        sizes = second_moment.clamp(min=smallest).sqrt() if tokens else torch.ones_like(second_moment)
        return check_ranked(weight.abs() * sizes, component)
