"""First divergent token as predicted by the margin law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Better, Metric, Readout, Reads
from compressor.errors import ConfigError

from .margin_noise import CLOSENESS, check_closeness, read_squares

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ExpectedFdtm(Metric):
    """Leading tokens on which candidate and base should agree by the margin law; far less noisy than a count.

    FDT = Σ_t Π_{i ≤ t} q_i, q_i = E_u[Π_k Φ(m_ik / s + u)], s² = σ²/2, u ~ N(0, 1). m_ik are the base's margins over
    its first `runners` runners-up. σ is the candidate's margin noise over all prefixes, with the same `closeness`. The
    value of one prefix (for the median and percentiles) uses the noise of that prefix. docs/margin-law.md says where
    the law holds; `fdtm` counts the tokens instead.

    Source: this project, docs/margin-law.md.
    """

    runners: int = 8
    closeness: float = CLOSENESS

    name: ClassVar[str] = "expected_fdtm"
    reads: ClassVar[Reads] = Reads.LOGITS
    better: ClassVar[Better] = Better.HIGHER
    unit: ClassVar[str] = "tokens"
    label: ClassVar[str] = "expected FDT"

    def check_options(self) -> None:
        check_closeness(self.name, self.closeness)
        if self.runners < 1:
            raise ConfigError(
                f"`metric.expected_fdtm.runners` must be at least 1, got {self.runners}; give for example 8"
            )

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence, 2 + noise]`: expected FDT at the sequence's own σ, σ², and expected FDT on a grid of σ."""
        import torch

        from compressor.sensitivity.margin_law import read_table, tabulate_fdt

        squares = read_squares(candidate, base, self.closeness).double()
        _, margins = base.runners_up(self.runners)
        table = tabulate_fdt(margins)
        alone = read_table(table.cpu().numpy(), np.sqrt(squares.cpu().numpy()))
        return torch.cat([torch.from_numpy(alone).to(squares)[:, None], squares[:, None], table], dim=1)

    def aggregate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        from compressor.sensitivity.margin_law import read_table

        means = values.mean(axis=-2)
        return read_table(means[..., 2:], np.sqrt(means[..., 1]))
