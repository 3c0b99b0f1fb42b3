"""The margin law: the expected divergence, from the base's margins and one number, the margin noise. Pure functions.

At a position, the base's token g has a logit that is larger than that of its k-th runner-up by the margin
m_k = z[g] − z[r_k] ≥ 0. Let the candidate's logits be those of the base plus independent Gaussian noise of variance
s² = σ²/2 each, so that σ² is the variance of a margin. The candidate keeps the token with probability

    q = E_u[ Π_k Φ(m_k / s + u) ],   u ~ N(0, 1)

where u is the noise of g itself. Positions are assumed to be independent:

    FDT = Σ_t Π_{i ≤ t} q_i        SDT = Σ_i (1 − q_i)

σ = 0 gives q = 1, also at exact ties. With one runner-up, q = Φ(m_1 / σ). docs/margin-law.md says how well the law
agrees with measurements, and where it fails.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

RUNNERS = 8
"""The number of runners-up that the law uses."""
TRUSTED_NOISE = 1.0
"""The largest σ, in logits, up to which a forecast trusts the law; see docs/margin-law.md for measurements beyond."""
QUADRATURE_POINTS = 21
NOISE_GRID: NDArray[np.float64] = np.concatenate([[0.0], np.geomspace(1e-4, 1e2, 84)])
"""Values of σ at which `tabulate_fdt` evaluates the law; each is 18 % larger than the one before."""
_tables = WeakTensorKeyDictionary()


def keep_probability(margins: Tensor, noise: float) -> Tensor:
    """q `[..., position]` in float64 of `margins` `[..., position, runner]` at margin noise σ = `noise` ≥ 0."""
    margins = margins.double()
    if noise == 0:
        return torch.ones(margins.shape[:-1], dtype=torch.float64, device=margins.device)
    nodes, weights = np.polynomial.hermite.hermgauss(QUADRATURE_POINTS)
    scaled = margins * (math.sqrt(2) / noise)
    kept = torch.zeros(margins.shape[:-1], dtype=torch.float64, device=margins.device)
    for node, weight in zip(nodes * math.sqrt(2), weights / math.sqrt(math.pi), strict=True):
        kept += weight * torch.special.ndtr(scaled + node).prod(-1)
    return kept.clamp(max=1.0)


def expected_fdt(margins: Tensor, noise: float) -> Tensor:
    """`[...]`: Σ_t Π_{i ≤ t} q_i over the positions of `margins` `[..., position, runner]`."""
    return keep_probability(margins, noise).cumprod(-1).sum(-1)


def expected_sdt(margins: Tensor, noise: float) -> Tensor:
    """`[...]`: Σ_i (1 − q_i) over the positions of `margins` `[..., position, runner]`."""
    return (1 - keep_probability(margins, noise)).sum(-1)


def tabulate_fdt(margins: Tensor) -> Tensor:
    """`[sequence, noise]`: expected FDT of `margins` `[sequence, position, runner]` at each value of `NOISE_GRID`.

    The table is cached by the tensor, because all candidates share the base's margins.
    """
    table: Tensor | None = _tables.get(margins)
    if table is None:
        table = _tables[margins] = torch.stack([expected_fdt(margins, float(noise)) for noise in NOISE_GRID], dim=-1)
    return table


def read_table(table: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value of `table` `[..., noise]` at margin noise `noise` `[...]`, with an error below 0.2 %.

    Interpolates with the cubic in log σ through the four nearest entries, clipped to its two neighbours. Between σ = 0
    and the next entry it interpolates linearly; beyond the last entry it is constant.
    """
    scale = np.log(NOISE_GRID[1:])
    position = np.log(np.clip(noise, NOISE_GRID[1], NOISE_GRID[-1]))
    left = np.clip(np.searchsorted(scale, position, side="right") - 1, 0, len(scale) - 2)
    near = np.clip(left - 1, 0, len(scale) - 4)[..., None] + np.arange(4)
    entries = np.take_along_axis(table, near + 1, -1)
    gaps = scale[near][..., :, None] - scale[near][..., None, :] + np.eye(4)
    steps = np.where(np.eye(4, dtype=bool), 1.0, (position[..., None] - scale[near])[..., None, :])
    cubic = (entries * (steps / gaps).prod(-1)).sum(-1)
    low, high = (np.take_along_axis(table, left[..., None] + after, -1)[..., 0] for after in (1, 2))
    cubic = np.clip(cubic, np.minimum(low, high), np.maximum(low, high))
    straight = table[..., 0] + np.minimum(noise / NOISE_GRID[1], 1.0) * (table[..., 1] - table[..., 0])
    result: NDArray[np.float64] = np.where(noise < NOISE_GRID[1], straight, cubic)
    return result
