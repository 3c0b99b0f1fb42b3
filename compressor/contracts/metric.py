"""The contract of metrics: the distance of a compressed model from its base."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts.guard import Guarded
from compressor.contracts.outputs import Readout
from compressor.contracts.types import Better, Reads

if TYPE_CHECKING:
    from torch import Generator as RandomGenerator
    from torch import Tensor


@dataclass(frozen=True)
class TextWindows:
    """Text on which a metric is scored, in windows of at most `window` tokens that move by `stride`.

    None means the run's default: its own text (or sequences sampled from the base), and the shorter of 2,048
    tokens and the model's context.
    At most `tokens` tokens are scored.
    """

    path: str | None = None
    window: int | None = None
    stride: int | None = None
    tokens: int | None = None


class Metric(Guarded, ABC):
    """Distance of a candidate from the base: forward pass -> values per sequence -> one value over all sequences."""

    _kind = "metric"
    name: ClassVar[str]
    reads: ClassVar[Reads]
    better: ClassVar[Better]
    unit: ClassVar[str] = ""
    label: ClassVar[str] = ""
    """The name in tables; empty means `name`."""

    @abstractmethod
    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence, value]` of the candidate; a pure function in which sequences do not affect one another.

        On text windows `base` is the candidate itself, because the base is not run there. Searches add up and compare
        the first value, so its mean and `aggregate` must agree on which of two candidates is better.
        """

    def aggregate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value over many sequences: `[..., sequence, value]` -> `[...]`; by default the mean of the first."""
        mean: NDArray[np.float64] = values[..., 0].mean(axis=-1)
        return mean

    def check_options(self) -> None:
        """Raise ConfigError for options that suit no model. It is called before the model is loaded."""

    def text(self) -> TextWindows | None:
        """The text on which the metric is scored; None for the base's continuations."""
        return None


class EstimableMetric(Metric):
    """A metric for which one backward pass estimates the effect of any small change of the weights.

    Let v be the first value of a sequence, θ the weights and Δ their change. Then

        v(θ + Δ) ≈ v(θ) + ⟨∂ value/∂θ, Δ⟩ + E⟨∂ probe/∂θ, Δ⟩²

    where `probe` is random. A schedule minimises the sum of these terms over components. So v must be 0 for the base,
    and `aggregate` must not decrease when the mean of v increases.
    """

    @abstractmethod
    def value(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence]`: v, differentiable in the candidate's logits."""

    @abstractmethod
    def probe(self, candidate: Readout, base: Readout, generator: RandomGenerator) -> Tensor:
        """`[sequence]`: differentiable in the candidate's logits; all randomness is from `generator`, on the CPU."""
