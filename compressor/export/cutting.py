"""Cuts MLP channels and attention heads that add nothing out of a model, so that its checkpoint gets smaller.

config.json has one width and one number of heads for all layers. So every layer keeps as many as the layer with most of
them that are not dead; the others keep some dead ones.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.export.cut_families import CUT_FAMILIES, CutFamily
from compressor.export.dead_groups import find_dead, find_side
from compressor.models import Model
from compressor.models.blocks import Block, find_blocks
from compressor.models.components import find_components
from compressor.models.stored_tensors import build_blank
from compressor.models.weight_views import WeightView

MIXED_WIDTHS = "layers have different widths, and config.json has one number for all of them"
STACK_MULTIPLE = 8
"""The width of stacked experts is a multiple of this: torch's grouped product needs rows of 16 bytes or a multiple."""
NO_HEADS = "config.json or the code of this family does not allow another number of heads"


@dataclass
class Cut:
    """What is cut out: the new values of `numbers` in config.json, and which rows and columns stay of the components.

    `kept` has for each component, by name, masks `[out]` and `[in]`. `notes` are sentences for the user.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keep(self, weight_view: WeightView, groups: Tensor, is_input: bool) -> None:
        """Keep the rows of a component, or with `is_input` the columns, that belong to these groups `[group]`."""
        out, width = weight_view.component.shape
        lines = groups.repeat_interleave((width if is_input else out) // len(groups))
        others = lines.new_ones(out if is_input else width)
        self.kept[weight_view.component.name] = (others, lines) if is_input else (lines, others)


def cut_model(model: Model) -> tuple[Model, list[str]]:
    """A smaller model with the same outputs, up to the rounding of sums of fewer terms, and notes for the user.

    The result is for saving only: its other tensors share memory with `model`, and computed buffers are missing. It is
    `model` itself if nothing can be cut.
    """
    weight_views = find_components(model.network, 0)
    found = find_cut(model, find_blocks(weight_views.values()))
    return (build_smaller(model, weight_views, found) if found.numbers else model), found.notes


def find_cut(model: Model, blocks: Sequence[Block]) -> Cut:
    """What can be cut out of the model, and why not more."""
    config = model.network.config.get_text_config()
    family, found = CUT_FAMILIES.get(config.model_type), Cut()
    if family is None:
        found.notes.append(
            f"Nothing was cut: a model of the family `{config.model_type}` cannot be, because its config.json or its "
            f"code has no such sizes, or it is not known here; {', '.join(CUT_FAMILIES)} can be."
        )
        return found
    mlps: dict[str, list[tuple[Block, WeightView]]] = defaultdict(list)
    heads: list[tuple[Block, WeightView]] = []
    for block in blocks:
        if (last := block.last) is not None:
            (heads if block.is_attention else mlps[family.find_width(block.path)]).append((block, last))
    for key, members in mlps.items():
        cut_channels(found, key, members, config)
    cut_heads(found, family, heads, config)
    return found


def cut_channels(found: Cut, key: str, members: Sequence[tuple[Block, WeightView]], config: Any) -> None:  # noqa: ANN401
    """Add to `found` the channels of MLPs whose common width is the number `key` of the config."""
    dead = [find_dead(block, last, config) for block, last in members]
    if len({len(one) for one in dead}) > 1:
        found.notes.append(f"No MLP channel was cut: {MIXED_WIDTHS}.")
        return
    total, size = len(dead[0]), count_alive(dead)
    if members[0][1].parameter.dim() == 3:
        size = min(total, -(-size // STACK_MULTIPLE) * STACK_MULTIPLE)
    if size == total:
        rule = f"the width of stacked experts must be a multiple of {STACK_MULTIPLE}"
        found.notes.append(f"`{key}` stays {total}: {explain_all(dead, members, 'MLP channel', rule)}.")
        return
    found.numbers[key] = size
    found.notes.append(f"`{key}` is {size} instead of {total}: MLP channels that add nothing were cut out.")
    for (block, last), one in zip(members, dead, strict=True):
        groups = choose_kept(one, size)
        found.keep(last, groups, is_input=True)
        for weight_view in block.pick(("gate", "up", "fc_in")):
            found.keep(weight_view, groups, is_input=False)


def cut_heads(found: Cut, family: CutFamily, members: Sequence[tuple[Block, WeightView]], config: Any) -> None:  # noqa: ANN401
    """Add to `found` the attention heads, in groups that share a key and a value."""
    dead = [find_dead(block, last, config) for block, last in members]
    if not family.heads or {len(one) for one in dead} != {config.num_key_value_heads}:
        if any(one.any() for one in dead):
            found.notes.append(f"No attention head was cut, although some add nothing: {NO_HEADS}.")
        return
    total, size, hidden = len(dead[0]), count_alive(dead), config.hidden_size
    queries = config.num_attention_heads // total
    while family.divides and hidden % (size * queries):
        size += 1  # ends at `total`, which transformers has accepted
    if size == total:
        rule = f"the number of heads must divide the hidden size {hidden}"
        reason = explain_all(dead, members, "attention head", rule)
        found.notes.append(f"`num_key_value_heads` stays {total}: {reason}.")
        return
    width = members[0][1].component.input_group // queries
    found.numbers |= {"num_attention_heads": size * queries, "num_key_value_heads": size, "head_dim": width}
    found.notes.append(
        f"`num_attention_heads` is {size * queries} instead of {total * queries}: heads that add nothing were cut out."
    )
    for (block, last), one in zip(members, dead, strict=True):
        groups = choose_kept(one, size)
        found.keep(last, groups, is_input=True)
        for weight_view in block.pick(("query", "key", "value")):
            found.keep(weight_view, groups, is_input=False)


def count_alive(dead: Iterable[Tensor]) -> int:
    """The largest number of groups that are not dead, over all blocks; at least 1, because no module has width 0."""
    return max(1, *(int((~one).sum()) for one in dead))


def choose_kept(dead: Tensor, size: int) -> Tensor:
    """`[group]`: true for the groups that stay, `size` of them: all that are not dead, and the first of the others."""
    kept = ~dead
    kept[dead.nonzero()[: size - int(kept.sum()), 0]] = True
    return kept


def explain_all(dead: Sequence[Tensor], members: Sequence[tuple[Block, WeightView]], what: str, rule: str) -> str:
    """Why all groups stay: none is dead, a block has no dead one, or the `rule` of the number does not allow fewer."""
    if not any(one.any() for one in dead):
        return f"every {what} adds something"
    needy = next((block.path for (block, _), one in zip(members, dead, strict=True) if not one.any()), None)
    return rule if needy is None else f"all layers share it, and `{needy}` needs all of them"


def build_smaller(model: Model, weight_views: Mapping[str, WeightView], found: Cut) -> Model:
    """The model with only the rows and columns that stay."""
    network, config = model.network, copy.deepcopy(model.network.config)
    for key, value in found.numbers.items():
        setattr(config.get_text_config(), key, value)
    smaller = build_blank(model.folder, config, model.dtype, model.trusts_code)
    smaller.load_state_dict(cut_state(network, weight_views, found), assign=True)
    smaller.requires_grad_(False)
    smaller.generation_config = network.generation_config
    if (conversions := getattr(network, "_weight_conversions", None)) is not None:  # how experts are named on disk
        smaller._weight_conversions = conversions
    cut_views = find_components(smaller, 0)
    views = {
        name: cut_views.get(name) or replace(old, owner=smaller.get_submodule(name))
        for name, old in model.weight_views.items()
    }
    return replace(model, network=smaller, weight_views=views)


def cut_state(network: nn.Module, weight_views: Mapping[str, WeightView], found: Cut) -> dict[str, Tensor]:
    """The state of the network with smaller tensors where something is cut out."""
    parts: dict[int, list[WeightView]] = defaultdict(list)
    for name in found.kept:
        parts[id(weight_views[name].parameter)].append(weight_views[name])
    smaller: dict[int, Tensor] = {}
    for key, views in parts.items():
        owner, parameter = views[0].owner, views[0].parameter.detach()
        mask = mask_parameter(parameter, views, found)
        smaller[key] = cut_matrices(parameter, mask)
        if parameter.dim() == 2 and (bias := getattr(owner, "bias", None)) is not None:
            smaller[id(bias)] = bias.detach()[mask.any(1 - find_side(owner))]
    names = {name: id(one) for name, one in network.named_parameters(remove_duplicate=False)}
    return {name: smaller.get(names.get(name, 0), tensor) for name, tensor in network.state_dict().items()}


def mask_parameter(parameter: Tensor, views: Iterable[WeightView], found: Cut) -> Tensor:
    """True for the weights of a parameter that stay, in its shape."""
    mask = torch.ones_like(parameter, dtype=torch.bool)
    for weight_view in views:
        part = weight_view.part(mask)
        rows, columns = found.kept[weight_view.component.name]
        part.logical_and_(rows.view(part.shape[:-1])[..., None] & columns)
    return mask


def cut_matrices(parameter: Tensor, mask: Tensor) -> Tensor:
    """The rows and columns of a matrix, or of each matrix of a stack, in which the mask has a true value."""
    if parameter.dim() == 3:
        return torch.stack([cut_matrices(one, part) for one, part in zip(parameter, mask, strict=True)])
    return parameter[mask.any(1)][:, mask.any(0)].contiguous()
