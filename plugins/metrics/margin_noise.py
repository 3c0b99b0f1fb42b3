"""Margin noise: the one number from which the margin law tells the divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Better, EstimableMetric, Reads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from compressor.readout import Readout


@dataclass
class MarginNoise(EstimableMetric):
    """How much the candidate moves the base's margins, in logits.

    σ = √(mean_i δ_i²), δ_i = m′_i − m_i, over positions and prefixes, where m_i = z_i[g_i] − z_i[r_i] is the margin of
    the base's token g over its first runner-up r; the candidate's m′ is at the same ids. σ² of small changes adds up
    over components: with random signs ε_i, E_ε⟨∂ Σ_i ε_i m′_i / ∂W, ΔW⟩² = Σ_i ⟨∂m′_i/∂W, ΔW⟩².

    Source: this project, docs/margin-law.md; the estimator of a trace is Hutchinson's, 1989.
    """

    name: ClassVar[str] = "margin_noise"
    reads: ClassVar[Reads] = Reads.LOGITS
    better: ClassVar[Better] = Better.LOWER
    unit: ClassVar[str] = "logits"
    label: ClassVar[str] = "σ"

    def statistics(self, candidate: Readout, base: Readout) -> Tensor:
        return self.value(candidate, base).double()[:, None]

    def aggregate(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np

        noise: NDArray[np.float64] = np.sqrt(statistics[..., 0].mean(axis=-1))
        return noise

    def value(self, candidate: Readout, base: Readout) -> Tensor:
        """mean_i δ_i²"""
        ids, margins = base.runners_up(1)
        return (read_margins(candidate, ids) - margins).square().mean((-2, -1))

    def probe(self, candidate: Readout, base: Readout, generator: Generator) -> Tensor:
        """Σ_i ε_i m′_i / √M"""
        import torch

        ids, _ = base.runners_up(1)
        margins = read_margins(candidate, ids)[..., 0]
        signs = torch.randint(2, margins.shape, generator=generator).to(margins) * 2 - 1
        return (signs * margins).sum(-1) / math.sqrt(margins.shape[-1])


def read_margins(candidate: Readout, ids: Tensor) -> Tensor:
    """`[sequence, position, runner]`: the candidate's logit of the base's token minus those at `ids`."""
    return candidate.logits_at(candidate.tokens[..., None]) - candidate.logits_at(ids)
