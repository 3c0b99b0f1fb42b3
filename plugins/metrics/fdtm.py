"""First divergent token metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Better, Metric, Readout, Reads

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Fdtm(Metric):
    """Leading tokens on which candidate and base agree.

    FDT = #{i : ĝ_j = g_j for all j ≤ i}, from 0 to M, where ĝ_i is the candidate's most likely token after the
    base's first i − 1 tokens. It is M if all tokens agree. Free-running greedy generation gives the same FDT.

    Source: Deiseroth et al., Divergent Token Metrics, NAACL 2024.
    """

    name: ClassVar[str] = "fdtm"
    reads: ClassVar[Reads] = Reads.LEADING
    better: ClassVar[Better] = Better.HIGHER
    unit: ClassVar[str] = "tokens"
    label: ClassVar[str] = "FDT"

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return candidate.leading.double()[:, None]
