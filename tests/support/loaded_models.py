"""What a loaded model says, and how many bytes it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.exports import NEW


def generate(network: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = network.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    return found


def logits(network: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(tokens, use_cache=False).logits
    return found


def count_bytes(network: nn.Module) -> int:
    """Of all parameters and buffers; what is shared once."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def count_computed(network: nn.Module) -> int:
    """Of buffers that no checkpoint has: a model makes them of its config, as rotary frequencies."""
    stored = network.state_dict().keys()
    return sum(buffer.nbytes for name, buffer in network.named_buffers() if name not in stored)
