"""How often the base's token is at least among the candidate's favourites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor import CompressorError, Metric
from compressor.contracts import Better, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.contracts import Readout


@dataclass
class TopAgreement(Metric):
    """Share of positions at which the base's token is among the candidate's `k` most likely ones.

    TA = (1/M) #{i : #{v : z_i(v) > z_i(g_i)} < k}, from 0 to 1, with the candidate's logits z_i and the base's tokens
    g_i; tokens that are as likely as g_i do not count against it.
    """

    k: int = 5

    name: ClassVar[str] = "top_agreement"
    reads: ClassVar[Reads] = Reads.DISTRIBUTION
    better: ClassVar[Better] = Better.HIGHER

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence, 1]`: the share of each sequence; `aggregate` is inherited, their mean."""
        if self.k < 1:
            raise CompressorError(f"`metric.top_agreement.k` must be at least 1, got {self.k}; give for example 5")
        logits = candidate.logits
        ahead = (logits > logits.gather(-1, candidate.tokens[..., None])).sum(-1)
        return (ahead < self.k).double().mean(-1, keepdim=True)
