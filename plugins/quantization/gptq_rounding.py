"""Rounding with error compensation: the linear algebra of GPTQ."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from compressor.contracts import QuantizedMatrix, working_dtype

from .rounding import find_bounds, round_within

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
TENFOLD = 10.0
noted: set[tuple[str, object]] = set()
"""Warnings that were given. Each is given once, however often a component is compressed."""


def factor_hessian(hessian: Tensor, damping: float, order: Tensor, name: str) -> Tensor:
    """R / diag(R) `[in, in]`, R upper triangular with R Rᵀ = H + λI, λ = damping · mean(diag H), in the given `order`.

    Columns are divided by their last element, so the diagonal is 1. The computation is in float64, because small
    eigenvalues decide about late columns. H is first divided by mean(diag H), which must not be 0. With J the matrix
    that reverses the order and L the Cholesky factor of J (H + λI) J, R is J L J. If H + λI is not positive definite,
    damping is multiplied by ten until it is, and a warning names the value.
    """
    import torch

    backwards, chosen = order.flip(0), damping
    matrix = hessian[backwards][:, backwards].double()
    matrix /= matrix.diagonal().mean()
    matrix.diagonal().add_(chosen)
    lower, failed = torch.linalg.cholesky_ex(matrix)
    while failed:  # this ends: with enough of the identity added, a finite matrix is positive definite
        matrix.diagonal().add_((TENFOLD - 1) * chosen)
        chosen *= TENFOLD
        lower, failed = torch.linalg.cholesky_ex(matrix)
    if chosen != damping:
        text = f"the Hessian of `{name}` is not positive definite with damping {damping:g}; {chosen:g} is used"
        note("damping", name, text)
    upper: Tensor = lower.flip(0, 1)
    return upper.div_(upper.diagonal().clone())


def round_columns(weight: Tensor, plain: QuantizedMatrix, factor: Tensor, order: Tensor, block: int) -> QuantizedMatrix:
    """Round the columns of `weight` `[out, in]` one by one in the `order`, on the grid of `plain`, with compensation.

    With w_j the original column, s_j its scales and F the `factor`, in that order,

        q_j = clamp(round((w_j + Σ_{i before j} F_ij (w_i − ŵ_i)) / s_j), −2^(b−1), 2^(b−1) − 1),

    ŵ_j = s_j q_j in the dtype of the weight. Errors of earlier blocks are added in one product for a whole `block`.
    Columns are held as rows, which are contiguous in memory.
    """
    import torch

    compute = working_dtype(weight.dtype)
    # Columns that are done hold their error, the others their weight.
    left, factor = weight.to(compute).mT[order], factor.to(compute)
    found = torch.empty_like(left, dtype=torch.int8)
    bounds = find_bounds(plain.scales, None, plain.integer_bits, plain.dtype)
    scales, lowest, highest = (part.to(compute).mT.contiguous() for part in (plain.scales, *bounds))
    places = (order // plain.group).tolist()
    for start in range(0, len(left), block):
        end = min(start + block, len(left))
        moved = left[start:end].addmm(factor[:start, start:end].mT, left[:start])
        for j in range(start, end):
            target = moved[j - start].addmv(left[start:j].mT, factor[start:j, j])
            place = places[j]
            integers = round_within(target, scales[place], None, (lowest[place], highest[place]))
            left[j] -= (scales[place] * integers).to(weight.dtype)
            found[j] = integers
    integers = torch.empty_like(plain.integers)
    integers[:, order] = found.mT
    return replace(plain, integers=integers)


def note_tokens(component: str, tokens: int, width: int) -> None:
    """Warn of missing or few calibration tokens; few tokens only for the first component of each width."""
    if tokens == 0:
        text = f"no calibration token reached `{component}`, so it is rounded to nearest; raise data.prefixes"
        note("unreached", None, text)
    elif tokens < width:
        text = f"`{component}` has only {tokens} calibration tokens for {width} inputs, so damping has a large effect"
        note("few", width, f"{text}; raise data.prefixes or data.continuation_tokens")


def note(kind: str, of: object, text: str) -> None:
    """Log a warning once."""
    if (kind, of) not in noted:
        noted.add((kind, of))
        log.warning("gptq: %s", text)
