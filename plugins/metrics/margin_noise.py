"""Margin noise: the number from which the margin law predicts the first divergent token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Better, EstimableMetric, Readout, Reads
from compressor.errors import ConfigError

if TYPE_CHECKING:
    from torch import Generator, Tensor

CLOSENESS = 0.25
"""In logits. Margins below it get nearly the full weight. docs/margin-law.md has the measurements behind it."""
LOWEST = 1e-6
"""With less, the weight of two equal logits would be infinite."""


@dataclass
class MarginNoise(EstimableMetric):
    """How much the candidate changes the base's margins, in logits. Small margins have the largest weights.

    σ² = Σ_i w_i δ_i², averaged over prefixes, with δ_i = m′_i − m_i. m_i = z_i[g_i] − z_i[r_i] is the margin of the
    base's token g over its first runner-up r; m′ is the candidate's margin for the same two ids. The weights
    w_i ∝ 1 / (m_i + c) sum to 1 over a prefix, because only small margins change sign. c is `closeness` in logits; a
    large c gives all positions the same weight. For small changes σ² adds up over components: with random signs ε_i,
    E_ε⟨∂ Σ_i ε_i √w_i m′_i / ∂W, ΔW⟩² = Σ_i w_i ⟨∂m′_i/∂W, ΔW⟩².

    Source: this project, docs/margin-law.md. Random signs: Hutchinson's trace estimator, 1989.
    """

    closeness: float = CLOSENESS

    name: ClassVar[str] = "margin_noise"
    reads: ClassVar[Reads] = Reads.LOGITS
    better: ClassVar[Better] = Better.LOWER
    unit: ClassVar[str] = "logits"
    label: ClassVar[str] = "σ"

    def check_options(self) -> None:
        check_closeness(self.name, self.closeness)

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return self.value(candidate, base).double()[:, None]

    def aggregate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        noise: NDArray[np.float64] = np.sqrt(values[..., 0].mean(axis=-1))
        return noise

    def value(self, candidate: Readout, base: Readout) -> Tensor:
        """Σ_i w_i δ_i²"""
        return read_squares(candidate, base, self.closeness)

    def probe(self, candidate: Readout, base: Readout, generator: Generator) -> Tensor:
        """Σ_i ε_i √w_i m′_i"""
        import torch

        ids, margins = base.runners_up(1)
        moved = read_margins(candidate, ids)[..., 0]
        signs = torch.randint(2, moved.shape, generator=generator).to(moved) * 2 - 1
        return (signs * weigh_positions(margins, self.closeness).sqrt() * moved).sum(-1)


def check_closeness(metric: str, closeness: float) -> None:
    """Raise ConfigError for a value that the option cannot have."""
    if not LOWEST <= closeness < math.inf:
        raise ConfigError(
            f"`metric.{metric}.closeness` must be finite and at least {LOWEST:g}, got {closeness:g}; give for example "
            f"{CLOSENESS}"
        )


def read_margins(candidate: Readout, ids: Tensor) -> Tensor:
    """`[sequence, position, runner]`: the candidate's logit of the base's token minus its logits at `ids`."""
    return candidate.logits_at(candidate.tokens[..., None]) - candidate.logits_at(ids)


def weigh_positions(margins: Tensor, closeness: float) -> Tensor:
    """`[sequence, position]`: w ∝ 1 / (m + c), where m is the first of `margins` `[sequence, position, runner]`."""
    weights = 1 / (1 + margins[..., 0].clamp(min=0.0) / closeness)
    return weights / weights.sum(-1, keepdim=True)


def read_squares(candidate: Readout, base: Readout, closeness: float) -> Tensor:
    """`[sequence]`: Σ_i w_i δ_i²."""
    ids, margins = base.runners_up(1)
    moved = (read_margins(candidate, ids) - margins)[..., 0]
    return (weigh_positions(margins, closeness) * moved.square()).sum(-1)
