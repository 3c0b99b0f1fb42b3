"""Kullback-Leibler divergence of the candidate's distribution from the base's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Better, Metric, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.readout import Readout


@dataclass
class Kl(Metric):
    """Nats per token that the candidate loses against the base, on the base's continuations.

    KL = (1/M) Σ_i Σ_v p_F(v) (ln p_F(v) − ln p_F′(v)) ≥ 0, over the full vocabulary, at the same positions.

    Source: Kullback and Leibler, On information and sufficiency, 1951.
    """

    name: ClassVar[str] = "kl"
    reads: ClassVar[Reads] = Reads.DISTRIBUTION
    better: ClassVar[Better] = Better.LOWER
    unit: ClassVar[str] = "nats per token"
    label: ClassVar[str] = "KL"

    def statistics(self, candidate: Readout, base: Readout) -> Tensor:
        p, q = base.log_probabilities, candidate.log_probabilities
        probability = p.exp()
        # A token that the base rules out adds nothing, also where both logits are -inf.
        divergence = (probability * (p - q)).masked_fill(probability == 0, 0.0).sum(-1)
        # The true value is never negative; what rounding leaves below zero is nothing.
        return divergence.clamp(min=0.0).double().mean(-1, keepdim=True)
