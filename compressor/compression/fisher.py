"""The diagonal of the Fisher information, by a backward pass over the calibration texts."""

from collections.abc import Collection, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from compressor.data.reference import Reference
from compressor.errors import ModelError
from compressor.models import Model
from compressor.models.gradients import LayerwiseGradients

FISHER_DIAGONAL = "fisher_diagonal"


def gather_fisher(model: Model, reference: Reference, groups: Iterable[Collection[str]]) -> Iterator[dict[str, Tensor]]:
    """F `[out, in]` in float32 of each component, in the current model, on its device; a backward pass for each group.

    F = (1/SM) Σ_s (∂ Σ_i ln p(y_si) / ∂W)² over the S sequences of `reference`, and i over the M positions of each
    continuation. Labels y_si are drawn from the model's own distribution p at each position, independently. So products
    of the gradients of two positions are 0 in expectation, and F is the Fisher information of a token: w² F / 2 is what
    a pruned weight w adds to the KL divergence, up to second order. One layer at a time has gradients in memory.

    Raises ModelError for a component whose gradient is not finite.
    """
    # Rounding depends on how many sequences go together, which groups must not change.
    at_once = LayerwiseGradients(model, list(model.components)).at_once
    for group in groups:
        yield _gather_group(model, reference, group, at_once)


def _gather_group(
    model: Model, reference: Reference, components: Collection[str], at_once: int | None
) -> dict[str, Tensor]:
    keep = reference.continuation_tokens
    gradients = LayerwiseGradients(model, components)
    totals = {name: torch.zeros(model.components[name].shape, device=model.device) for name in components}

    def add(name: str, sequences: slice, found: Tensor) -> None:
        totals[name] += found.float().square().sum(0)

    for start, tokens in reference.batches():
        first = start
        for rows in tokens.split(at_once or len(tokens)):
            draws = draw_uniform(first, len(rows), keep).to(model.device)
            gradients.run_backward(rows[:, :-1], keep, partial(score_drawn_labels, draws=draws), add)
            first += len(rows)
    for name, total in totals.items():
        total /= reference.tokens.shape[0] * keep
        if not total.isfinite().all():
            raise ModelError(
                f"the gradient of `{name}` holds NaN or infinity, or its square is too large; use "
                "model.dtype=float32, or exclude it by components.exclude"
            )
    return totals


def draw_uniform(first: int, sequences: int, keep: int) -> Tensor:
    """`[sequence, keep]` numbers in [0, 1). Those of a sequence depend on its index alone, not on its batch."""
    seeds = range(first, first + sequences)
    return torch.stack([torch.rand(keep, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def score_drawn_labels(logits: Tensor, draws: Tensor) -> Tensor:
    """`[sequence]`: Σ_i ln p(y_i); y_i is where the CDF of `logits` `[sequence, keep, vocabulary]` reaches the draw."""
    known = logits.float().log_softmax(-1)
    below = known.detach().exp().cumsum(-1) < draws[..., None]
    labels = below.sum(-1, keepdim=True).clamp(max=known.shape[-1] - 1)
    return known.gather(-1, labels)[..., 0].sum(-1)
