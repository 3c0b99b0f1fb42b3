"""A test case of the compressor contract: a compressor with a weight, and which promises apply to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from compressor.compression.calibration import CALIBRATION_DATA
from compressor.compression.fisher import FISHER_DIAGONAL
from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer, QuantizedMatrix

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda normal: normal,
    "bfloat16": lambda normal: normal.bfloat16(),
    "float16": lambda normal: normal.half(),
    "one_row": lambda normal: normal[:1],
    "one_column": lambda normal: normal[:, :1],
    "transposed": lambda normal: normal.T,
    "zeros": lambda normal: 0 * normal.abs(),
    "ties": lambda normal: normal.sign().bfloat16(),
    "half_zeros": lambda normal: normal.relu(),
    "outliers": lambda normal: (normal**9).bfloat16(),
}
"""Test weights, made from normal random numbers `[out, in]` whose sizes no group divides."""


def make_weight(name: str) -> Tensor:
    """One of `WEIGHTS`, with a fixed seed."""
    return WEIGHTS[name](torch.randn(19, 75, generator=torch.Generator().manual_seed(0)))


def make_calibration_data(out: int, width: int) -> dict[str, Tensor]:
    """Calibration data of 2 · `width` random, correlated input vectors; the last input is always 0.

    The Fisher information is that of random gradients of the `out` outputs, one for each input vector.
    """
    return {name: tensor.clone() for name, tensor in _accumulate(out, width).items()}


@cache
def _accumulate(out: int, width: int) -> dict[str, Tensor]:
    mixed = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width**0.5
    inputs = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(2)) @ mixed
    inputs[:, -1] = 0
    found = {}
    for name, accumulation in CALIBRATION_DATA.items():
        found[name] = accumulation.start(width)
        accumulation.add(found[name], inputs)
        if accumulation.is_mean:
            found[name] /= len(inputs)
    outputs = torch.randn(2 * width, out, generator=torch.Generator().manual_seed(3))
    found[FISHER_DIAGONAL] = outputs.square().mT @ inputs.square() / len(inputs)
    return found


@dataclass(frozen=True)
class CompressorCase:
    """A compressor and a test weight `[out, in]`. Calibration data are those of random inputs."""

    plugin: Compressor
    weight: Tensor

    @cached_property
    def context(self) -> Context:
        """The context of a component with the shape and dtype of the weight, with all calibration data."""
        out, width = self.weight.shape
        component = Component("model.layers.0.mlp.down_proj", "down", 0, (out, width), self.weight.element_size() * 8)
        return Context(component, calibration=make_calibration_data(out, width))

    @property
    def offer(self) -> Offer:
        return self.plugin.offer(self.context.component)

    @property
    def amounts(self) -> list[float]:
        """All offered levels, or a few amounts across the range, in increasing order."""
        offer = self.offer
        spread: list[float] = np.linspace(offer.low, offer.high, 6).tolist()
        return sorted(offer.levels or spread)

    def compress(self, amount: float) -> CompressedWeight:
        return self.plugin.compress(self.weight, amount, self.context)

    def compress_all(self) -> Iterator[CompressedWeight]:
        """The compressed weight at each of `amounts`."""
        return (self.compress(amount) for amount in self.amounts)

    def find_integers(self) -> Iterator[tuple[float, CompressedWeight, QuantizedMatrix]]:
        """Amount, compressed weight and its integers, at each of `amounts` where it consists of integers and scales."""
        for amount in self.amounts:
            compressed = self.compress(amount)
            if compressed.quantized is not None:
                yield amount, compressed, compressed.quantized

    def compress_rows(self, amounts: list[float]) -> CompressedWeight:
        return self.plugin.compress_rows(self.weight, amounts, self.context)

    # Conditions under which promises apply ----------------------------------------------------------------------

    def always(self) -> bool:
        """The promise applies to every compressor and every weight."""
        return True

    def starts_at_zero(self) -> bool:
        """A range of amounts is offered, and it starts at 0."""
        return self.offer.is_range and self.offer.low == 0

    def has_rows(self) -> bool:
        return self.offer.by_row

    def ranks_weights(self) -> bool:
        """The compressor is a pruner of single weights."""
        return self.plugin.importance(self.weight, self.context) is not None

    @cached_property
    def has_integers(self) -> bool:
        """At some amount the weight consists of integers, scales and zero points."""
        return any(self.find_integers())

    def transforms_inputs(self) -> bool:
        return self.plugin.transforms_inputs
