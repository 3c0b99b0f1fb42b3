"""Rounding that makes up for its errors: the linear algebra of GPTQ."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from .integers import IntegerWeight, find_lowest, working_dtype

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
TENFOLD = 10.0
noted: set[tuple[str, object]] = set()
"""What was said already: warnings come once, however often a component is tried."""


def factor_inverse(hessian: Tensor, damping: float, order: Tensor, name: str) -> Tensor:
    """U `[in, in]`, upper triangular, with Uᵀ U = (H + λI)⁻¹, λ = damping · mean(diag H); rows in the given `order`.

    Up to a factor that does not count: H is divided by mean(diag H), which must not be 0. In float64, because what
    decides about late columns are the small eigenvalues. With J the matrix that turns the order around, the Cholesky
    factor L of J (H + λI) J gives U = (J L J)⁻¹, so that nothing is inverted but a triangle. Where H + λI is not
    positive definite in spite of λ, damping is raised tenfold, and a line says so.
    """
    import torch

    matrix = hessian.double()[order][:, order].flip(0, 1)
    matrix = matrix / matrix.diagonal().mean()
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    chosen = damping
    lower, failed = torch.linalg.cholesky_ex(matrix + chosen * eye)
    while failed:  # comes to an end: a finite matrix is small beside enough of the identity
        chosen *= TENFOLD
        lower, failed = torch.linalg.cholesky_ex(matrix + chosen * eye)
    if chosen != damping:
        text = f"the Hessian of `{name}` is not positive definite with damping {damping:g}, used is {chosen:g}"
        note("damping", name, text)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    return factor


def round_columns(weight: Tensor, plain: IntegerWeight, factor: Tensor, order: Tensor, block: int) -> IntegerWeight:
    """Columns of `weight` `[out, in]` one by one in the `order`, on the grid of `plain`; those to come are moved.

    With w_j the column as it is by then, and U the `factor`, in that order,

        q_j = clamp(round(w_j / s_j), −2^(b−1), 2^(b−1) − 1),  e_j = (w_j − ŵ_j) / U_jj,
        w_k ← w_k − U_jk e_j  for k after j,

    ŵ_j = s_j q_j in the dtype of the weight. Columns behind a `block` are moved by all of its errors at once.
    """
    import torch

    compute = working_dtype(weight.dtype)
    rest, factor = weight.to(compute)[:, order], factor.to(compute)
    scales, places = plain.scales.to(compute), (order // plain.group).tolist()
    integers, highest = torch.empty_like(plain.integers), 2 ** (plain.bits_each - 1) - 1
    lowest = find_lowest(plain.scales, plain.bits_each, plain.dtype).to(compute)
    for start in range(0, rest.shape[1], block):
        inside = rest[:, start : start + block]
        corner = factor[start : start + block, start : start + block]
        errors, found = torch.zeros_like(inside), torch.zeros_like(inside)
        for j in range(inside.shape[1]):
            place = places[start + j]
            scale = scales[:, place]
            found[:, j] = (inside[:, j] / scale).round().clamp(max=highest).maximum(lowest[:, place])
            dense = (scale * found[:, j]).to(weight.dtype).to(compute)
            errors[:, j] = (inside[:, j] - dense) / corner[j, j]
            inside[:, j + 1 :] -= torch.outer(errors[:, j], corner[j, j + 1 :])
        integers[:, order[start : start + block]] = found.to(torch.int8)
        rest[:, start + block :] -= errors @ factor[start : start + block, start + block :]
    return replace(plain, integers=integers)


def note_tokens(component: str, tokens: int, width: int) -> None:
    """Say where calibration is not what it should be; of the components of one width only of the first."""
    if tokens == 0:
        text = f"no calibration token reached `{component}`, so it is rounded to nearest; raise data.prefixes"
        note("unreached", None, text)
    elif tokens < width:
        note(
            "few",
            width,
            f"`{component}` has {tokens} calibration tokens for {width} inputs, so damping decides much; "
            "raise data.prefixes or data.continuation_tokens",
        )


def note(kind: str, of: object, text: str) -> None:
    """A warning, once."""
    if (kind, of) not in noted:
        noted.add((kind, of))
        log.warning("gptq: %s", text)
