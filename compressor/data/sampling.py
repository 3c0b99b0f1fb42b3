"""Sequences that a model writes by chance: prefixes, and texts where the user gives none."""

import torch
from torch import Tensor

from compressor.models import Model

SAMPLED_AT_ONCE = 64  # a constant: each batch draws its random numbers anew
SMALL_VOCABULARY = 1 << 12
"""Up to here tokens are drawn on the host, by torch's own `multinomial`, which needs a random number for each token of
the vocabulary. All figures of the documentation rest on texts that were drawn so."""


def sample_sequences(model: Model, count: int, tokens: int, seed: int) -> Tensor:
    """`[sequence, position]`: sequences sampled from the model at temperature 1, which begin with BOS if there is one.

    The first sequences of a seed are the same for every `count`. Special tokens are never sampled.
    """
    known = getattr(model.tokenizer, "all_special_ids", ())
    special = torch.tensor([token for token in known if token < model.vocabulary], dtype=torch.int64)
    draw = draw_on_host if model.vocabulary <= SMALL_VOCABULARY else draw_on_device
    chunks = []
    for chunk in range(-(-count // SAMPLED_AT_ONCE)):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + chunk) % 2**63)

        def pick(logits: Tensor, generator: torch.Generator = generator) -> Tensor:
            return draw(logits, special, generator)

        if model.bos is not None:
            first = torch.full((SAMPLED_AT_ONCE, 1), model.bos, dtype=torch.int64)
        else:
            first = torch.randint(model.vocabulary, (SAMPLED_AT_ONCE, 1), generator=generator)
        chunks.append(model.decode(first, tokens - 1, pick).cpu())
    return torch.cat(chunks)[:count]


def draw_on_host(logits: Tensor, special: Tensor, generator: torch.Generator) -> Tensor:
    """`[sequence]`: tokens drawn by the softmax of `logits` `[sequence, vocabulary]`, none of them `special`."""
    probabilities = logits.double().cpu().softmax(-1).index_fill_(-1, special, 0.0)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1).to(logits.device)


def draw_on_device(logits: Tensor, special: Tensor, generator: torch.Generator) -> Tensor:
    """As `draw_on_host`, by the inverse of the cumulative distribution, with one number of the host for a sequence.

    The token is the first t with Σ_{i ≤ t} p_i > u · Σ p_i, where u in [0, 1) is the random number.
    """
    numbers = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator).to(logits.device)
    sums = logits.double().softmax(-1).index_fill_(-1, special.to(logits.device), 0.0).cumsum(-1)
    whole = sums[:, -1:]
    wanted = torch.minimum(numbers * whole, whole.nextafter(torch.zeros_like(whole)))  # a product may round up
    return torch.searchsorted(sums, wanted, right=True).squeeze(-1)
