"""The suite of compressors notices every broken promise about transformed inputs, and lets honest ones pass."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    InputTransform,
    Offer,
    QuantizedMatrix,
    TokenRounding,
)
from compressor.testing import CompressorContract


@dataclass(frozen=True)
class Clipped(CompressedWeight):
    """A weight as it is, of which `change` makes what becomes of inputs."""

    weight: Tensor
    change: InputTransform | None
    integers: QuantizedMatrix | None = None

    def dense(self) -> Tensor:
        return self.weight

    @property
    def bits(self) -> int:
        return self.weight.nbytes * 8

    @property
    def input_transform(self) -> InputTransform | None:
        return self.change

    @property
    def quantized(self) -> QuantizedMatrix | None:
        return self.integers


def clip(inputs: Tensor) -> Tensor:
    return inputs.clamp(-2, 2)


@dataclass
class Clip(Compressor):
    name: ClassVar[str] = "clip"
    change: ClassVar[Callable[..., Tensor]] = staticmethod(clip)

    @property
    def transforms_inputs(self) -> bool:
        return True

    def offer(self, component: Component) -> Offer:
        return Offer(levels=(0.5,))

    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        return Clipped(weight, self.change)


class TestHonestInputs(CompressorContract):
    instance = Clip()


def clip_in_place(inputs: Tensor) -> Tensor:
    return inputs.clamp_(-2, 2)


def give_integers(inputs: TokenRounding | None, change: InputTransform | None) -> Callable[..., CompressedWeight]:
    def compress(self: Compressor, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        integers, scales = torch.zeros(weight.shape, dtype=torch.int8), torch.ones(len(weight), 1, dtype=weight.dtype)
        matrix = QuantizedMatrix(integers, scales, 8, 0, weight.dtype, input_rounding=inputs)
        return Clipped(weight, change, matrix)

    return compress


counter = itertools.count(1)
SILENT, STANDS, PURE, ALONE = (
    "treated_inputs_are_announced",
    "treated_inputs_stand_in_for_the_inputs",
    "treat_is_pure",
    "every_token_is_treated_by_itself",
)
BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "silent": (SILENT, {"transforms_inputs": False}),
    "integers_without_inputs": (SILENT, {"compress": give_integers(None, clip)}),
    "integers_without_transform": (SILENT, {"compress": give_integers(TokenRounding(), None)}),
    "another_rounding": (SILENT, {"compress": give_integers(TokenRounding(), TokenRounding(4))}),
    "dtype": (STANDS, {"change": staticmethod(lambda x: x.double())}),
    "shape": (STANDS, {"change": staticmethod(lambda x: x[..., :1])}),
    "nan": (STANDS, {"change": staticmethod(lambda x: x / x.abs().amax(-1, keepdim=True))}),
    "needs_a_batch": (STANDS, {"change": staticmethod(lambda x: x + 0 * x[0, 0, 0])}),
    "in_place": (PURE, {"change": staticmethod(clip_in_place)}),
    "draws": (PURE, {"change": staticmethod(lambda x: x * torch.rand(x.shape[-1]))}),
    "counts": (PURE, {"change": staticmethod(lambda x: x / next(counter))}),
    "whole_batch": (ALONE, {"change": staticmethod(lambda x: x.clamp(max=x.abs().mean()))}),
    "neighbours": (ALONE, {"change": staticmethod(lambda x: x - x.mean(1, keepdim=True))}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_inputs_are_noticed(case: str) -> None:
    promise, members = BROKEN[case]
    weight = torch.tensor([[0.5, -0.0, 0.25], [-1.0, 2.0, -3.0]])
    plugin = dataclass(type("Broken", (Clip,), members))()
    with pytest.raises((AssertionError, IndexError)):
        getattr(CompressorContract(), f"test_{promise}")(plugin, weight)
