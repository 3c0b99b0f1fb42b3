"""Search over clipped ranges: every group keeps the grid with the smallest error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FACTORS = tuple(1 - step / 40 for step in range(21))
"""Factors that the range is multiplied by: 1, 0.975, …, 0.5."""


def search_clip(
    groups: Tensor, fit: Callable[[float], tuple[Tensor, ...]], decode: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    """The grid of the factor c* = argmin over c in `FACTORS` of Σ (w − ŵ_c)², the sum over a group.

    `groups` is `[rows, group, weight]`. `fit(c)` returns the grid of the range multiplied by c, as tensors
    `[rows, group]`. `decode(*grid)` returns the weights rounded to it, ŵ_c `[rows, group, weight]`, in the dtype of
    the weight. In a tie c = 1 is kept, so no group has a larger error than without the search.
    """
    largest = groups.abs().amax(-1, keepdim=True)
    unit = largest.masked_fill(largest == 0, 1)

    def add_error(grid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # In units of the group's largest weight, because its square may overflow or underflow.
        return (((groups - decode(*grid).to(groups.dtype)) / unit).square().sum(-1), *grid)

    best = add_error(fit(1.0))
    for factor in FACTORS[1:]:
        best = keep_better(best, add_error(fit(factor)))
    return best[1:]


def keep_better(best: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For each group the tensors with the smaller error (the first tensor, `[rows, group]`); `best` in a tie."""
    import torch

    better = found[0] < best[0]
    return tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
