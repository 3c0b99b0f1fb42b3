"""Calibration data by hand: inputs overheard, and sums over them in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from compressor.compression.calibration import TOKENS
from compressor.models import Model
from compressor.models.architectures import is_linear
from tests.support.estimates import Bench

ALL = ("hessian", "second_moment", "absmax", TOKENS)


@contextmanager
def overheard(model: Model) -> Iterator[dict[str, list[Tensor]]]:
    """Component -> the inputs `[token, in]` of its module, for modules that are one product."""
    heard: dict[str, list[Tensor]] = {
        name: [] for name, weight_view in model.weight_views.items() if is_linear(weight_view.owner)
    }

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heard[name].append(inputs[0].double().reshape(-1, inputs[0].shape[-1]))

    handles = [model.weight_views[name].owner.register_forward_pre_hook(partial(note, name)) for name in heard]
    yield heard
    for handle in handles:
        handle.remove()


def explicit(inputs: list[Tensor], width: int, weights: Tensor | None = None) -> dict[str, Tensor]:
    """The data of `inputs` `[token, in]`, where tokens count by `weights` `[token]`, else the same."""
    x = torch.cat([torch.zeros(0, width, dtype=torch.float64), *inputs])
    w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights
    w, x = w[(x != 0).any(1)], x[(x != 0).any(1)]
    total = w.sum() if len(w) else 1
    outer = (weight * torch.outer(row, row) for weight, row in zip(w, x, strict=True))
    squares = (weight * row**2 for weight, row in zip(w, x, strict=True))
    return {
        "hessian": sum(outer, torch.zeros(width, width).double()) / total,
        "second_moment": sum(squares, torch.zeros(width).double()) / total,
        "absmax": torch.cat([torch.zeros(1, width).double(), x.abs()]).amax(0),
        TOKENS: torch.tensor(len(x)),
    }


def assert_same(found: dict[str, Tensor] | None, expected: dict[str, Tensor], what: str, rounding: float) -> None:
    assert found is not None
    assert found[TOKENS] == expected[TOKENS], what
    for name in ("hessian", "second_moment", "absmax"):
        assert found[name].dtype is torch.float32
        error, size = (found[name] - expected[name]).abs().max(), expected[name].abs().max()
        assert error <= rounding * size, f"{what}: {name} off by {error} of {size}"


def run_plainly(bench: Bench) -> None:
    for _, tokens in bench.reference.batches():
        bench.model.logits(tokens[:, :-1], bench.reference.continuation_tokens)
