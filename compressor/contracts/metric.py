"""The contract of metrics: how far a compressed model is from its base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts.types import Better, Reads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator as RandomGenerator
    from torch import Tensor

    from compressor.contracts.outputs import Readout


@dataclass(frozen=True)
class TextWindows:
    """Natural text that a metric wants to be scored on, in windows of at most `window` tokens moved by `stride`.

    None leaves the choice to the run: its own text (or sequences sampled from the base), the model's context.
    `tokens` bounds how many are scored.
    """

    path: str | None = None
    window: int | None = None
    stride: int | None = None
    tokens: int | None = None


class Metric(ABC):
    """How far a candidate is from the base. One forward pass -> values per sequence -> one value over many."""

    name: ClassVar[str]
    reads: ClassVar[Reads]
    better: ClassVar[Better]
    unit: ClassVar[str] = ""
    label: ClassVar[str] = ""
    """What tables call it; empty means its name."""

    @abstractmethod
    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence, value]` of the candidate on some sequences; pure, and independent between sequences.

        On text windows `base` is the candidate itself: the base is not run there. Searches add up and compare the first
        value, so its mean and `aggregate` must agree on which of two candidates is better.
        """

    def aggregate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value over many sequences: `[..., sequence, value]` -> `[...]`; by default the mean of the first."""
        mean: NDArray[np.float64] = values[..., 0].mean(axis=-1)
        return mean

    def text(self) -> TextWindows | None:
        """None to be scored on the base's continuations, else the text to be scored on."""
        return None


class EstimableMetric(Metric):
    """A metric of which one backward pass tells what any small change of the weights would do.

    It speaks of the first value of a sequence, v. With θ the weights and Δ their change,

        v(θ + Δ) ≈ v(θ) + ⟨∂ value/∂θ, Δ⟩ + E⟨∂ probe/∂θ, Δ⟩²

    where `probe` is random. The sum over components of such terms is what a schedule minimises, so `aggregate` must not
    decrease with the mean of v, which must be 0 for the base.
    """

    @abstractmethod
    def value(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence]`: v, differentiable in the candidate's logits."""

    @abstractmethod
    def probe(self, candidate: Readout, base: Readout, generator: RandomGenerator) -> Tensor:
        """`[sequence]`: differentiable in the candidate's logits; all randomness from `generator` (on the CPU)."""
