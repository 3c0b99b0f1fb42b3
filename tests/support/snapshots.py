"""The parameters of a model before something, compared bit for bit with those after it."""

from __future__ import annotations

import torch

from compressor.models import Model


def snapshot(model: Model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.network.parameters()]


def is_unchanged(model: Model, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.network.parameters(), before, strict=True))
