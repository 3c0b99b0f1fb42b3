"""The Cholesky factor of the damped Hessian, by which errors of earlier columns are compensated in later ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .calibration_warnings import warn_once

if TYPE_CHECKING:
    from torch import Tensor

TENFOLD = 10.0


def factor_hessian(hessian: Tensor, damping: float, order: Tensor, compressor: str, component: str) -> Tensor:
    """R `[in, in]`, upper triangular with R Rᵀ = H / m + λI, m = mean(diag H), λ = `damping`, in the given `order`.

    The inverse of R is the Cholesky factor of the inverse of R Rᵀ: (R Rᵀ)⁻¹ = (R⁻¹)ᵀ R⁻¹. The computation is in
    float64, because small eigenvalues decide about late columns. m must not be 0. With J the matrix that reverses the
    order and L the Cholesky factor of J (H / m + λI) J, R is J L J. If the matrix is not positive definite, damping is
    multiplied by ten until it is, and a warning names the value.
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
        text = f"the Hessian of `{component}` is not positive definite with damping {damping:g}; {chosen:g} is used"
        warn_once(compressor, "damping", component, text)
    upper: Tensor = lower.flip(0, 1)
    return upper
