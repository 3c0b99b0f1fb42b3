"""`bits` of every compressor against its formula: packed integers, scales, zero points and indices."""

from collections.abc import Callable
from math import ceil

import pytest
import torch

from compressor.contracts import Component, Compressor, Context, QuantizedMatrix, Storage
from compressor.testing.compressor_case import make_calibration_data
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.gptq import Gptq
from compressor_plugins.quantization.hqq import Hqq
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Activations, Granularity, Int8
from compressor_plugins.quantization.llm_int8 import LlmInt8
from compressor_plugins.quantization.nf4 import Nf4
from compressor_plugins.quantization.rtn import Rtn

KEPT = 1.5
"""The threshold of `llm_int8`."""


def count_kept(width: int) -> int:
    return int((make_calibration_data(1, width)["absmax"] >= KEPT).sum())


def count_mixed(out: int, width: int, scale: int) -> int:
    kept = count_kept(width)
    return 8 * out * (width - kept) + out * scale + 16 * out * kept + 32 * kept


def count_double(out: int, width: int, group: int) -> int:
    scales = out * ceil(width / group)
    return 4 * out * width + 8 * scales + 32 * ceil(scales / 256) + 32


FORMULAS: dict[str, tuple[Compressor, int, Callable[[int, int, int], int]]] = {
    "int8": (Int8(), 8, lambda out, width, scale: 8 * out * width + out * scale),
    "int8 of a matrix": (Int8(Granularity.tensor), 8, lambda out, width, scale: 8 * out * width + scale),
    "int8 × int8": (Int8(activations=Activations.token), 8, lambda out, width, scale: 8 * out * width + out * scale),
    "int4": (Int4(7), 4, lambda out, width, scale: 4 * out * width + out * ceil(width / 7) * scale),
    "int4 with zero points": (
        Int4(7, symmetric=False), 4, lambda out, width, scale: 4 * out * width + out * ceil(width / 7) * (scale + 4),
    ),
    "rtn": (Rtn([3], 5), 3, lambda out, width, scale: 3 * out * width + out * ceil(width / 5) * scale),
    "gptq": (Gptq([5], 16), 5, lambda out, width, scale: 5 * out * width + out * ceil(width / 16) * scale),
    "hqq": (Hqq([3], 9), 3, lambda out, width, scale: 3 * out * width + out * ceil(width / 9) * 2 * scale),
    "nf4": (Nf4(6, False), 4, lambda out, width, scale: 4 * out * width + out * ceil(width / 6) * scale),
    "nf4 with scales in 8 bits": (Nf4(6), 4, lambda out, width, scale: count_double(out, width, 6)),
    "llm_int8": (LlmInt8(KEPT), 8, count_mixed),
    "magnitude": (Magnitude(), 8, lambda out, width, scale: scale * out * width),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMULAS)
@pytest.mark.parametrize(("out", "width"), [(1, 1), (1, 7), (3, 5), (19, 75), (33, 63), (300, 9)])
@pytest.mark.parametrize(
    ("dtype", "stored_bits"),
    [(torch.float64, 32), (torch.float32, 32), (torch.float32, 16), (torch.bfloat16, 16), (torch.float16, 16)],
)
def test_bits_are_the_formula(case: str, out: int, width: int, dtype: torch.dtype, stored_bits: int) -> None:
    """Scales are as wide as what the checkpoint stores, in 16 or 32 bits."""
    compressor, bits, count = FORMULAS[case]
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    component = Component("model.layers.0.mlp.up_proj", "up", 0, (out, width), stored_bits)
    context = Context(component, calibration=make_calibration_data(out, width))
    found = compressor.compress(weight, 1 - bits / stored_bits, context)
    assert found.bits == count(out, width, stored_bits)


@pytest.mark.parametrize("case", FORMULAS)
def test_what_a_compressor_says_of_its_storage_is_so(case: str) -> None:
    compressor, bits, _ = FORMULAS[case]
    component = Component("model.layers.0.mlp.up_proj", "up", 0, (64, 64), 16)
    context = Context(component, calibration=make_calibration_data(64, 64))
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = compressor.compress(weight, 1 - bits / 16, context)
    assert (found.bits == component.parameters * 16) == (compressor.stored_as is Storage.dense)
    assert isinstance(found, QuantizedMatrix) == (compressor.stored_as is Storage.integers)
    assert compressor.stored_as is not None


def test_some_columns_are_kept_and_some_are_not() -> None:
    """So that the formula of `llm_int8` has all of its parts."""
    assert 0 < count_kept(75) < 75
