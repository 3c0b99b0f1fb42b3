"""The remaining weights of pruned rows as the solution of a least squares problem, in closed form."""

import torch
from torch import Tensor

from compressor.recovery.training_failed import TrainingFailed

SOLVED_AT_ONCE = 1 << 26
"""The largest number of elements of all systems that are solved together, 512 MB in float64."""


def solve_rows(weight: Tensor, remaining: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """`[out, in]`: for each row w of `weight` and the set S of its `remaining` weights, the w′ that is 0 outside of S

    and minimises (w′ − w)ᵀ H (w′ − w) + λ‖w′_S − w_S‖²,  so (H_SS + λI) w′_S = (H w)_S + λ w_S,

    with H `hessian` `[in, in]`, the second moment of the inputs, and λ `damping` times the mean of its diagonal. It is
    computed in float64. An input that is always zero leaves its weight as it is.
    """
    precise, width = hessian.double(), weight.shape[1]
    extent = float(precise.diagonal().mean())
    if extent == 0:
        return torch.where(remaining, weight, 0)
    damped = precise + damping * extent * torch.eye(width, dtype=precise.dtype, device=precise.device)
    goals = weight.double() @ damped
    solved, counts = torch.zeros_like(goals), remaining.sum(-1).cpu()
    failures = torch.zeros((), dtype=torch.int32, device=weight.device)
    for start in range(0, len(weight), step := max(1, SOLVED_AT_ONCE // width**2)):
        rows = slice(start, start + step)
        most = int(counts[rows].max())
        if most == 0:
            continue
        # The remaining columns first; what fills up shorter rows gets a system of its own that gives zeros.
        order = remaining[rows].to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :most]
        is_real = remaining[rows].gather(-1, order)
        systems = damped[order[:, :, None], order[:, None, :]]
        systems = systems * (is_real[:, :, None] & is_real[:, None, :])
        systems.diagonal(dim1=-2, dim2=-1).add_((~is_real).double())
        factors, failed = torch.linalg.cholesky_ex(systems)
        failures += failed.count_nonzero()
        right = goals[rows].gather(-1, order) * is_real
        found = torch.cholesky_solve(right[:, :, None], factors)[:, :, 0]
        solved[rows] = solved[rows].scatter(-1, order, found * is_real)
    if bool(failures):
        raise TrainingFailed(
            f"the least squares problem of a component of {width} inputs has no unique solution at the damping "
            f"{damping:g}",
            "raise",
            "damping",
        )
    return solved.to(weight.dtype)
