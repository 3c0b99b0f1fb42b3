"""Gradients of some scalar of the logits: layer by layer, and by autograd on each parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.models import Model
from compressor.models.gradients import LayerwiseGradients
from tests.support.families import VOCABULARY

TOKENS, KEEP = 9, 5


def draw_tokens(sequences: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (sequences, TOKENS), generator=torch.Generator().manual_seed(seed))


def weigh(logits: Tensor) -> Tensor:
    """`[sequence]`: some smooth scalar of the logits, of each sequence alone."""
    weights = torch.linspace(-1, 1, logits.shape[-1] * logits.shape[-2], dtype=logits.dtype).view(logits.shape[1:])
    return (weights * logits.log_softmax(-1)).sum((-2, -1)) + logits.square().mean((-2, -1))


def walk_gradients(model: Model, names: list[str], tokens: Tensor) -> dict[str, Tensor]:
    """`[sequence, out, in]` by the walk; zeros where it did not come."""
    found = {name: torch.zeros(len(tokens), *model.components[name].shape) for name in names}
    walk = LayerwiseGradients(model, names)
    size = walk.at_once or len(tokens)
    for start in range(0, len(tokens), size):

        def visit(name: str, rows: slice, gradients: Tensor, start: int = start) -> None:
            found[name][start + rows.start : start + rows.stop] += gradients

        walk.run_backward(tokens[start : start + size], KEEP, weigh, visit)
    return found


def explicit_gradients(model: Model, name: str, tokens: Tensor) -> Tensor:
    """`[sequence, out, in]` by autograd on the parameter, one sequence at a time, nothing recomputed."""
    weight_view = model.weight_views[name]
    parameter = getattr(weight_view.owner, weight_view.attribute).requires_grad_(True)
    found = []
    for row in tokens:
        logits = model.network(input_ids=row[None], use_cache=False).logits[:, -KEEP:]
        (gradient,) = torch.autograd.grad(weigh(logits).sum(), parameter, allow_unused=True)
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        found.append(weight_view.part(gradient).reshape(weight_view.component.shape))
    parameter.requires_grad_(False)
    return torch.stack(found)
