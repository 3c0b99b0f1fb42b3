"""Share of divergent tokens metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Better, Metric, Readout, Reads

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Sdtm(Metric):
    """Tokens of the base's continuation at which the candidate predicts another token.

    SDT = #{i : ĝ_i ≠ g_i}, a count from 0 to M. Divided by M it is a share.

    Source: Deiseroth et al., Divergent Token Metrics, NAACL 2024.
    """

    name: ClassVar[str] = "sdtm"
    reads: ClassVar[Reads] = Reads.PREDICTED
    better: ClassVar[Better] = Better.LOWER
    unit: ClassVar[str] = "tokens"
    label: ClassVar[str] = "SDT"

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return (candidate.predicted != candidate.tokens).sum(-1, keepdim=True).double()
