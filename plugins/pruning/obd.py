"""Optimal Brain Damage: pruning by weights and the Fisher information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Context

from ..calibration_warnings import warn_once
from ..weight_checks import check_ranked
from .pruner import RankedPruner

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Obd(RankedPruner):
    """Sets the weights of the smallest saliency w² F to zero, with F the diagonal of the Fisher information.

    F_jk = E (∂ ln p(y) / ∂w_jk)² over positions of the calibration texts and labels y that are drawn from the model at
    each of them. w² F / 2 is the KL divergence that a pruned weight causes, up to second order and without what weights
    do together. So saliencies of all rows and components are comparable. ŵ = 0 at the round(a · m) smallest of each
    set of m weights, ŵ = w elsewhere. The set is the matrix or a row, by `scope`. The amount a is the sparsity after
    pruning: weights that were zero before count too. Among equal saliency the lowest index is pruned first. With
    amounts per row, the round(a_r · in) smallest of row r of `[out, in]` become zero, whatever the `scope`. `pattern`
    N:M keeps the N largest of every M neighbours, as in `magnitude`.

    Weights with F = 0 are pruned first, the smallest |w| first, but after weights that are zero. F takes a backward
    pass, about four forward passes, once for each round; `wanda` takes one forward pass.

    Source: LeCun, Denker and Solla, Optimal Brain Damage, NIPS 1989, with the Hessian of the loss. The Fisher
    information is the expected Hessian of −ln p(y) under these labels, and never negative.
    """

    name: ClassVar[str] = "obd"
    needs: ClassVar[frozenset[str]] = frozenset({"fisher_diagonal"})

    def rank(self, weight: Tensor, context: Context) -> Tensor:
        """|w| √F `[out, in]` in float32 at least, in the order of w² F; raises ModelError for NaN."""
        import torch

        component, fisher = context.component, context.calibration["fisher_diagonal"]
        if not fisher.any():
            text = f"`{component.name}` has no gradient on the calibration texts, so it is pruned by magnitude"
            warn_once(self.name, "no gradient", None, f"{text}; raise data.prefixes")
        smallest = torch.finfo(fisher.dtype).tiny  # so that F = 0 still ranks weights by |w|
        return check_ranked(weight.abs() * fisher.clamp(min=smallest).sqrt(), component)
