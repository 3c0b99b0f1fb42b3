"""The search for a better range of every group: grids are compared, each group keeps its best."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FACTORS = tuple(1 - step / 40 for step in range(21))
"""What the range may be shrunk by: 1, 0.975, …, 0.5."""


def search_clip(
    groups: Tensor, fit: Callable[[float], tuple[Tensor, ...]], decode: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    """The grid of the factor c* = argmin over c in `FACTORS` of Σ (w − ŵ_c)², the sum over a group.

    `groups` `[rows, group, weight]`; `fit(c)` gives the grid of the range shrunk by c as tensors `[rows, group]`, and
    `decode(*grid)` the ŵ_c `[rows, group, weight]` that weights get on it, in the dtype of the weight. The whole
    range, c = 1, wins ties, so that no group ends with a larger error than without the search.
    """
    largest = groups.abs().amax(-1, keepdim=True)
    unit = largest.masked_fill(largest == 0, 1)

    def weigh(grid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # In units of the group's largest weight, whose square may be too large or too small for its dtype.
        return (((groups - decode(*grid).to(groups.dtype)) / unit).square().sum(-1), *grid)

    best = weigh(fit(1.0))
    for factor in FACTORS[1:]:
        best = keep_better(best, weigh(fit(factor)))
    return best[1:]


def keep_better(best: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For each group what has the smaller error, `best` in a tie; the errors `[rows, group]` come first in both."""
    import torch

    better = found[0] < best[0]
    return tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
