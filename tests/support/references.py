"""Prefixes, and the independent oracle of what a model says after them."""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from compressor.models import Model


def random_prefixes(model: Model, count: int = 6, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, model.vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def generate(model: Model, prefixes: torch.Tensor, tokens: int) -> torch.Tensor:
    """The independent oracle: transformers' own greedy search, row by row, never stopped by end-of-text."""
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    kept, model.network.generation_config = model.network.generation_config, config  # generate fills in what is None
    try:
        rows = [
            model.network.generate(row[None], attention_mask=torch.ones_like(row[None]), generation_config=config)
            for row in prefixes
        ]
    finally:
        model.network.generation_config = kept
    return torch.cat(rows)


def count_leading(reference: torch.Tensor, candidate: torch.Tensor) -> list[int]:
    found = []
    for expected, said in zip(reference.tolist(), candidate.tolist(), strict=True):
        agree = 0
        while agree < len(expected) and expected[agree] == said[agree]:
            agree += 1
        found.append(agree)
    return found
