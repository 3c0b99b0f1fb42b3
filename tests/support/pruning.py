"""Weights, calibration data and exact masks for tests of pruners."""

import torch
from torch import Tensor

from compressor.compression.calibration import CALIBRATION_DATA
from compressor.contracts import Component, Context

NAME = "model.layers.0.mlp.up_proj"


def draw_inputs(seed: int, width: int, tokens: int | None = None) -> Tensor:
    """`[token, in]` float32: correlated inputs of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator)
    sizes = torch.exp(torch.randn(width, generator=generator))
    return torch.randn(tokens or 3 * width, width, generator=generator) @ mixed * sizes


def draw_weight(seed: int, out: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)


def make_context(weight: Tensor, inputs: Tensor) -> Context:
    """The context of a component with this weight; calibration data are gathered from `inputs` as a run does it."""
    out, width = weight.shape
    found = {}
    for name, accumulation in CALIBRATION_DATA.items():
        found[name] = accumulation.start(width)
        accumulation.add(found[name], inputs.float())
        if accumulation.is_mean:
            found[name] /= max(1, int(inputs.any(-1).sum()))
    return Context(Component(NAME, "up", 0, (out, width), weight.element_size() * 8), calibration=found)


def find_lowest(values: list[float], count: int) -> list[int]:
    """Indices of the `count` smallest; among equal values the lowest index first."""
    return sorted(range(len(values)), key=lambda index: (values[index], index))[:count]


def mask_pattern(importance: Tensor, keep: int, of: int) -> Tensor:
    """True for all except the `keep` largest of every `of` neighbours in a row, one group after the other."""
    mask = torch.zeros_like(importance, dtype=torch.bool)
    for row, values in enumerate(importance.tolist()):
        for start in range(0, len(values), of):
            group = values[start : start + of]
            kept = -(-keep * len(group) // of)
            for index in find_lowest(group, len(group) - kept):
                mask[row, start + index] = True
    return mask
