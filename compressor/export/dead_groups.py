"""Finds MLP channels and attention heads that add nothing to any output, whatever the input.

A channel of an MLP, or the heads that share a key and a value, are a *group*: rows of the first matrices of a block and
columns of its last one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from compressor.models.blocks import Block
from compressor.models.weight_views import WeightView

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
"""Keys of config.json that name an activation function."""


def find_dead(block: Block, last: WeightView, config: Any) -> Tensor:  # noqa: ANN401 - transformers' configs are untyped
    """`[group]`: true for groups that add nothing. `last` is the last matrix of the block.

    That is so if the group's columns of the last matrix are zero, or if its activations are: those of an attention if
    its rows of the value (and their biases) are zero, those of an MLP if its rows of up are, or those before an
    activation function with f(0) = 0.
    """
    width = last.component.input_group
    dead = (last.read() == 0).all(0).view(-1, width).all(1)
    kinds = ["value"] if block.is_attention else ["up"] if "gate" in block.views else []
    if not block.is_attention and keeps_zero(config):
        kinds += ["gate", "fc_in", "up"]
    for weight_view in block.pick(dict.fromkeys(kinds)):
        if weight_view.component.shape[0] % len(dead) == 0:
            dead |= find_zero_rows(weight_view).view(len(dead), -1).all(1)
    return dead


def find_zero_rows(weight_view: WeightView) -> Tensor:
    """`[out]`: true for output rows that are zero, with their bias."""
    zero = (weight_view.read() == 0).all(1)
    bias = getattr(weight_view.owner, "bias", None)
    return zero if bias is None else zero & (bias.detach()[find_places(weight_view)] == 0)


def find_places(weight_view: WeightView) -> Tensor:
    """`[out]`: the places of the component's rows among all outputs of its linear module."""
    parameter, side = weight_view.parameter, find_side(weight_view.owner)
    places = torch.arange(parameter.shape[side], device=parameter.device)
    places = (places[:, None] if side == 0 else places[None]).expand(parameter.shape)
    return weight_view.part(places)[..., 0].flatten()


def find_side(module: nn.Module) -> int:
    """The dimension of the weight of a linear module that counts its outputs."""
    return 1 if isinstance(module, Conv1D) else 0


def keeps_zero(config: Any) -> bool:  # noqa: ANN401
    """Whether every activation function that the config names maps 0 to 0."""
    names = [name for key in ACTIVATIONS if isinstance(name := getattr(config, key, None), str)]
    zero = torch.zeros(1)
    return bool(names) and all(name in ACT2FN and float(ACT2FN[name](zero)) == 0 for name in names)
