"""Kullback-Leibler divergence between the next-token distributions of base and candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Better, EstimableMetric, Readout, Reads

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass
class Kl(EstimableMetric):
    """Mean KL divergence from base to candidate on the base's continuations, in nats per token.

    KL = (1/M) Σ_i Σ_v p_F(v) (ln p_F(v) − ln p_F′(v)) ≥ 0, over the full vocabulary, at the same positions. Its
    curvature is the Fisher information: with labels y_i sampled from F′, the second-order change of KL by ΔW is
    ½ E_y⟨∂ Σ_i ln p_F′(y_i) / ∂W, ΔW⟩² / M.

    Source: Kullback and Leibler, On information and sufficiency, 1951; Martens, New insights and perspectives on the
    natural gradient method, JMLR 2020.
    """

    name: ClassVar[str] = "kl"
    reads: ClassVar[Reads] = Reads.DISTRIBUTION
    better: ClassVar[Better] = Better.LOWER
    unit: ClassVar[str] = "nats per token"
    label: ClassVar[str] = "KL"

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        # The true value is never negative. Negative numbers are rounding errors.
        return divergence(candidate, base).clamp(min=0.0).double().mean(-1, keepdim=True)

    def value(self, candidate: Readout, base: Readout) -> Tensor:
        return divergence(candidate, base).mean(-1)

    def probe(self, candidate: Readout, base: Readout, generator: Generator) -> Tensor:
        """Σ_i ln p_F′(y_i) / √(2M), y_i sampled from p_F′ at each position."""
        import torch

        q = candidate.log_probabilities
        drawn = torch.rand(q.shape[:-1], generator=generator).to(q.device)[..., None]
        labels = (q.detach().exp().cumsum(-1) < drawn).sum(-1, keepdim=True).clamp(max=q.shape[-1] - 1)
        return q.gather(-1, labels)[..., 0].sum(-1) / math.sqrt(2 * q.shape[1])


def divergence(candidate: Readout, base: Readout) -> Tensor:
    """`[sequence, position]`: KL at each position, in nats."""
    p, q = base.log_probabilities, candidate.log_probabilities
    probability = p.exp()
    # A token with probability 0 in the base adds nothing, even if both logits are -inf.
    return (probability * (p - q)).masked_fill(probability == 0, 0.0).sum(-1)
