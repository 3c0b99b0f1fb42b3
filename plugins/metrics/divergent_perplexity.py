"""Perplexity of the candidate on the continuations that the base generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Better, Metric, Readout, Reads

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class DivergentPerplexity(Metric):
    """Perplexity of the candidate on the base's continuations; 1 means that it is certain of every token.

    DPPL = exp(−(1/M) Σ_i ln p_F′(g_i | prefix, g_1 … g_{i−1})) ≥ 1. Over many prefixes it is the exponential of the
    mean over all tokens. SDT · ln 2 ≤ M · ln DPPL.

    Source: Deiseroth et al., Divergent Token Metrics, NAACL 2024.
    """

    name: ClassVar[str] = "divergent_perplexity"
    reads: ClassVar[Reads] = Reads.REFERENCE
    better: ClassVar[Better] = Better.LOWER
    label: ClassVar[str] = "DPPL"

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return -candidate.reference_log_probability.double().mean(-1, keepdim=True)

    def aggregate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        perplexity: NDArray[np.float64] = np.exp(values[..., 0].mean(axis=-1))
        return perplexity
