"""Swaps: the mask of Wanda, improved by the error of a row's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Context, working_dtype

from ..calibration_warnings import warn_of_tokens
from ..options import check_option
from ..weight_checks import check_finite
from .masks import PrunedWeight, prune
from .pruner import Pruner
from .selection import Scope

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = 16
"""Weights to prune, and weights to keep, of which all pairs are compared in one step of a row."""
CHUNK = 1 << 24
"""Numbers in the weights, or the pairs, of the rows that take their steps together."""
LOOK_EVERY = 8
"""Steps between two looks at which rows still improve; each look waits for the device."""


@dataclass
class Swaps(Pruner):
    """Starts with the mask of `wanda`, and exchanges a pruned weight for a kept one while that lowers the error.

    For H = Σ x xᵀ / n of the n inputs of a component, the error of a row w with the pruned set P is e H eᵀ, the mean
    squared change of its output, where e is w on P and 0 elsewhere. With g = e H, to prune u and to keep p of P instead
    changes it by

        2 w_u g_u + w_u² H_uu  −  2 w_p g_p + w_p² H_pp  −  2 w_u w_p H_up.

    Each row takes up to `steps` steps; a step makes the best exchange. It compares all pairs of the 16 weights that are
    cheapest to prune and the 16 that gain most if they are kept, the last term left out, and ends where none of them
    lowers the error. So the error never grows, and every row keeps its number of pruned weights. Weights that stay are
    not changed; `recovery=least_squares` solves for them. With a `pattern`, both weights are of the same group.

    `scope` and amounts per row say how many weights each row starts with, as in `wanda`. Weights that were zero before
    stay pruned. A component that no token reached is pruned by |w|. With `sequential`, the inputs come from a model
    whose earlier layers are compressed, when a plan is kept.

    Source: Zimmer et al., SparseSwaps, 2025 (arXiv 2512.10922), which compares all pairs of a row.
    """

    scope: Scope = Scope.row
    steps: int = 1000
    sequential: bool = True

    name: ClassVar[str] = "swaps"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian", "tokens"})

    def check_options(self) -> None:
        super().check_options()
        check_option(self, "steps", self.steps >= 1, "at least 1", "1000")

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        (compressed,) = self.compress_each(weight, [amount], context)
        return compressed

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[PrunedWeight]:
        for amount in amounts:
            self.offer(context.component).require(amount, self.name, context.component)
        importance = self.rank(weight, context)
        for amount in amounts:
            yield self.prune(weight, self.selection.find_mask(importance, amount), context)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> PrunedWeight:
        self.offer(context.component).require_rows(amounts, self.name, context.component)
        return self.prune(weight, self.selection.find_row_mask(self.rank(weight, context), amounts), context)

    def rank(self, weight: Tensor, context: Context) -> Tensor:
        """|w_ij| · √(mean x_j²) `[out, in]`, or |w_ij| without a token; raises ModelError for NaN and infinity."""
        import torch

        check_finite(weight, context.component)
        tokens = int(context.calibration["tokens"])
        warn_of_tokens(self.name, context.component.name, tokens, "pruned by magnitude")
        second_moment = context.calibration["hessian"].diagonal()
        smallest = torch.finfo(second_moment.dtype).tiny  # so that an input of 0 still ranks its weights by |w|
        return weight.abs() * (second_moment.clamp(min=smallest).sqrt() if tokens else torch.ones_like(second_moment))

    def prune(self, weight: Tensor, mask: Tensor, context: Context) -> PrunedWeight:
        """`weight` with zeros at the improved `mask`."""
        if int(context.calibration["tokens"]):
            hessian = context.calibration["hessian"].to(working_dtype(weight.dtype))
            group = self.selection.parse_pattern()[1] if self.pattern else 0
            mask = improve(weight.to(hessian.dtype), mask, hessian, self.steps, group)
        return prune(weight, mask, context.component)


def improve(weight: Tensor, mask: Tensor, hessian: Tensor, steps: int, group: int = 0) -> Tensor:
    """The mask `[out, in]` after up to `steps` exchanges in each row; some rows at a time, so that memory is bounded.

    Pairs are within each `group` of neighbours, or anywhere in the row if it is 0.
    """
    import torch

    count = min(CANDIDATES, weight.shape[1])
    rows = max(1, CHUNK // max(count**2, weight.shape[1]))
    chunks = zip(weight.split(rows), mask.split(rows), strict=True)
    return torch.cat([improve_rows(*chunk, hessian, steps, group, count) for chunk in chunks])


def improve_rows(weight: Tensor, mask: Tensor, hessian: Tensor, steps: int, group: int, count: int) -> Tensor:
    """`improve` for rows that take their steps together, with pairs of `count` candidates each."""
    import torch

    improved, mask, rows = mask.clone(), mask.clone(), torch.arange(len(weight), device=weight.device)
    alone = weight.square() * hessian.diagonal()
    change = (weight * mask) @ hessian  # g: how the outputs of a row change, times its inputs, as the mask is now
    last_u, last_p, improves = rows, rows, torch.ones_like(rows, dtype=torch.bool)
    for step in range(steps):
        together, every = 2 * weight * change, torch.arange(len(weight), device=weight.device)
        pruning = (alone + together).masked_fill(mask, torch.inf)
        keeping = (alone - together).masked_fill(~mask | (weight == 0), torch.inf)
        cost, u = pruning.topk(count, largest=False)
        gain, p = keeping.topk(count, largest=False)
        both = weight.gather(1, u)[:, :, None] * weight.gather(1, p)[:, None, :] * hessian[u[:, :, None], p[:, None, :]]
        pairs = cost[:, :, None] + gain[:, None, :] - 2 * both
        if group:
            pairs.masked_fill_((u // group)[:, :, None] != (p // group)[:, None, :], torch.inf)
        best, place = pairs.flatten(1).min(1)
        u, p = u[every, place // count], p[every, place % count]
        # A row without a better exchange is done. Rounding could also take the last exchange back, and so for ever.
        improves = improves & (best < 0) & ((u != last_p) | (p != last_u))
        last_u, last_p = u, p
        mask[every, u] |= improves
        mask[every, p] &= ~improves
        change += (weight[every, u, None] * hessian[u] - weight[every, p, None] * hessian[p]) * improves[:, None]
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
            improved[rows] = mask
            left = improves.nonzero().squeeze(1)
            rows, weight, mask, alone, change, last_u, last_p, improves = (
                each[left] for each in (rows, weight, mask, alone, change, last_u, last_p, improves)
            )
            if not len(rows):
                break
    return improved
