"""Perplexity on natural text, in strided windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Better, Metric, Readout, Reads, TextWindows
from compressor.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Perplexity(Metric):
    """Perplexity of the candidate on text: exp(−Σ ln p(token) / tokens) over all scored tokens.

    The text is read in windows of `window` tokens (null: 2,048, or the model's context if that is shorter) that move by
    `stride` (null: the window, as is usual for WikiText-2). Each token is counted once, in the first window that scores
    it. The text is the file `path`, else the run's own text, else sequences sampled from the base; the report names it.
    At most `tokens` tokens are scored (0: all).
    """

    path: str | None = None
    window: int | None = None
    stride: int | None = None
    tokens: int = 16384

    name: ClassVar[str] = "perplexity"
    reads: ClassVar[Reads] = Reads.REFERENCE
    better: ClassVar[Better] = Better.LOWER

    def check_options(self) -> None:
        for field, least in (("window", 2), ("stride", 1), ("tokens", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ConfigError(f"`metric.perplexity.{field}` must be at least {least}, got {value}; raise it")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ConfigError(
                f"`metric.perplexity.stride` must be at most the window of {self.window}, got {self.stride}; lower it"
            )

    def text(self) -> TextWindows:
        self.check_options()
        return TextWindows(self.path, self.window, self.stride, self.tokens or None)

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        import torch

        counted = candidate.counted.double()
        nats = -(candidate.reference_log_probability.double() * counted).sum(-1)
        return torch.stack([nats, counted.sum(-1)], dim=-1)

    def aggregate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        nats, tokens = values[..., 0].sum(axis=-1), values[..., 1].sum(axis=-1)
        perplexity: NDArray[np.float64] = np.exp(nats / np.maximum(tokens, 1.0))
        return perplexity
