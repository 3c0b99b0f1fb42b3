"""The losses of recovery: language modelling, and distillation from the base."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from compressor.contracts.recovery import Loss, Training


def compute_loss(training: Training, logits: Tensor, tokens: Tensor, base: Tensor | None) -> Tensor:
    """The mean loss of all predicted tokens, in nats.

    `logits` and those of the `base` are `[sequence, position, vocabulary]`, for `tokens` `[sequence, position]`; the
    base's may be None where the loss does not use them.
    """
    share = training.mix if training.loss is not Loss.language_modelling else 0.0
    loss = logits.new_zeros((), dtype=torch.float32)
    if share < 1:
        predicted = logits[:, :-1].flatten(0, 1).float()
        loss = loss + (1 - share) * cross_entropy(predicted, tokens[:, 1:].flatten())
    if share > 0:
        assert base is not None, "the caller computes them"
        divergences = compute_divergences(logits[:, :-1], base[:, :-1], training.temperature)
        if training.loss is Loss.margins:
            divergences = divergences * compute_weights(base[:, :-1])
        loss = loss + share * divergences.mean()
    return loss


def compute_divergences(logits: Tensor, base: Tensor, temperature: float) -> Tensor:
    """τ² KL(p_F ‖ p_F′) `[sequence, position]` of logits divided by the temperature τ (Hinton et al., 2015)."""
    ours = (logits.float() / temperature).log_softmax(-1)
    theirs = (base.float() / temperature).log_softmax(-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)


def compute_weights(base: Tensor) -> Tensor:
    """r / mean(r) `[sequence, position]`: r is the base's second largest probability divided by its largest."""
    first, second = base.float().topk(2, dim=-1).values.unbind(-1)
    ratios = (second - first).exp()
    return ratios / ratios.mean()
