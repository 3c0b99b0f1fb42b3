"""Where the matrices of a decoder layer are stored: tables of facts about transformers' modules, no code per family.

A `Part` is a function from a parameter to a view of one matrix, oriented `[out..., in]`. A matrix whose name is in no
table is one component, and its name is its kind. The same holds for a fused matrix whose shape does not fit its table.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Part = Callable[[Tensor], Tensor]
Split = tuple[tuple[str, Part], ...]
"""Suffix and view of each part of a fused matrix, in order."""

ATTENTION_KINDS = {
    **dict.fromkeys(("q_proj", "q_attn", "q_lin", "query_proj", "query", "wq", "Wq"), "query"),
    **dict.fromkeys(("k_proj", "k_lin", "key_proj", "key", "wk", "Wk"), "key"),
    **dict.fromkeys(("v_proj", "v_lin", "value_proj", "value", "wv", "Wv"), "value"),
    **dict.fromkeys(("o_proj", "out_proj", "out_lin", "c_proj", "dense", "wo", "Wo"), "output"),
}
MLP_KINDS = {
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3", "v1"), "up"),
    **dict.fromkeys(("down_proj", "output_linear", "w2"), "down"),
    **dict.fromkeys(("fc_in", "fc1", "c_fc", "dense_h_to_4h", "lin1"), "fc_in"),
    **dict.fromkeys(("fc_out", "fc2", "c_proj", "dense_4h_to_h", "lin2"), "fc_out"),
}
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SUFFIX_KINDS = {"q": "query", "k": "key", "v": "value", "gate": "gate", "up": "up"}
ATTENTION_INPUTS = {leaf for leaf, kind in ATTENTION_KINDS.items() if kind in ("query", "key", "value")}
ROUTERS = {"gate", "router", "shared_expert_gate"}


@dataclass(frozen=True)
class Heads:
    """The number of query heads of an attention module, and the width of one head."""

    count: int
    width: int

    @classmethod
    def of_module(cls, module: nn.Module, config: Any) -> Self | None:  # noqa: ANN401 - transformers' configs are untyped
        count = find_number((module, "num_heads"), (config, "num_attention_heads"))
        width = find_number((module, "head_dim"), (module, "head_size"), (config, "head_dim"))
        if count and not width:
            width = (find_number((config, "hidden_size")) or 0) // count
        return cls(count, width) if count and width else None


def split_contiguous(out: int, heads: Heads | None) -> Split | None:
    """Rows `[query | key | value]`; keys and values may have fewer heads than queries."""
    if heads is None or (out - heads.count * heads.width) % (2 * heads.width):
        return None
    queries = heads.count * heads.width
    rows = (out - queries) // 2
    if rows < heads.width:
        return None
    return (
        ("q", lambda weight: weight.narrow(0, 0, queries)),
        ("k", lambda weight: weight.narrow(0, queries, rows)),
        ("v", lambda weight: weight.narrow(0, queries + rows, rows)),
    )


def split_grouped(out: int, heads: Heads | None) -> Split | None:
    """Rows `[group, queries of the group + key + value, head width]`, with a group for each key head."""
    if heads is None or out % heads.width or (out // heads.width - heads.count) % 2:
        return None
    groups = (out // heads.width - heads.count) // 2
    if groups < 1 or heads.count % groups:
        return None
    shape = (groups, heads.count // groups + 2, heads.width)
    return (
        ("q", lambda weight: _split_rows(weight, shape)[:, :-2]),
        ("k", lambda weight: _split_rows(weight, shape)[:, -2]),
        ("v", lambda weight: _split_rows(weight, shape)[:, -1]),
    )


def split_codegen(out: int, heads: Heads | None) -> Split | None:
    """Rows `[4, query | value | key, ...]`: CodeGen's rows are in four blocks, one for each device of its training."""
    if out % 12:
        return None
    order = (("q", 0), ("k", 2), ("v", 1))
    return tuple((suffix, _select_block(4, 3, block)) for suffix, block in order)


def split_halves(out: int, heads: Heads | None) -> Split | None:
    """Rows `[gate | up]`."""
    if out % 2:
        return None
    return (("gate", _select_block(1, 2, 0)), ("up", _select_block(1, 2, 1)))


def split_alternating(out: int, heads: Heads | None) -> Split | None:
    """Rows `gate, up, gate, up, ...`."""
    if out % 2:
        return None
    return (("gate", lambda weight: weight[0::2]), ("up", lambda weight: weight[1::2]))


Splitter = Callable[[int, Heads | None], Split | None]
FUSED: dict[str, Splitter] = {
    "qkv_proj": split_contiguous,
    "Wqkv": split_contiguous,
    "W_pack": split_contiguous,
    "c_attn": split_contiguous,
    "query_key_value": split_grouped,
    "gate_up_proj": split_halves,
}
# Modules where a name of the table above has another layout, or where a name in no table is a fused matrix.
FUSED_IN: dict[tuple[str, str], Splitter] = {
    ("CodeGenAttention", "qkv_proj"): split_codegen,
    ("MiniMaxLightningAttention", "qkv_proj"): split_grouped,
    ("GPTBigCodeAttention", "c_attn"): split_grouped,
    ("GraniteMoeHybridMLP", "input_linear"): split_halves,
    ("GraniteMoeSharedMLP", "input_linear"): split_halves,
    ("GraniteMoeSWAMLP", "input_linear"): split_halves,
}
# Experts that are stacked along the rows of one matrix, and whether each of them is stored transposed.
STACKED_ROWS = {"DbrxExpertGLU": {"w1": False, "v1": False, "w2": True}}
FUSED_ATTENTION = {leaf for leaf, split in FUSED.items() if split is not split_halves}


def name_kind(leaf: str, parent: nn.Module) -> str:
    """Kind of the matrix `leaf` in `parent`; that of `c_proj` or `dense` depends on the other modules in `parent`."""
    siblings = set(dict(parent.named_children()))
    is_attention = bool(siblings & (ATTENTION_INPUTS | FUSED_ATTENTION))
    return (ATTENTION_KINDS if is_attention else MLP_KINDS).get(leaf, leaf)


def split_matrix(leaf: str, parent: nn.Module, rows: int, config: Any) -> Iterator[tuple[str, str, Part]]:  # noqa: ANN401
    """Suffix, kind and view of each component in the matrix `leaf` of `parent`; `rows` is its number of output rows."""
    splitter = FUSED_IN.get((type(parent).__name__, leaf), FUSED.get(leaf))
    if splitter is split_halves and not getattr(parent, "is_concatenated", True):
        splitter = split_alternating
    split = splitter(rows, Heads.of_module(parent, config)) if splitter else None
    if split is None:
        yield "", name_kind(leaf, parent), keep_orientation
        return
    for suffix, part in split:
        yield suffix, SUFFIX_KINDS[suffix], part


def is_linear(module: nn.Module) -> bool:
    """Is the module one matrix product with a layout that `weight_gradient` supports?"""
    return isinstance(module, nn.Linear | Conv1D)


def weight_gradient(module: nn.Module, inputs: Tensor, gradients: Tensor) -> Tensor:
    """`[sequence, *weight]` in float32: the weight gradients of a linear module, Σ_positions d xᵀ.

    `inputs` x are `[sequence, position, in]`, `gradients` d those of the outputs, `[sequence, position, out]`.
    """
    x, d = inputs.float(), gradients.float()
    return x.mT @ d if isinstance(module, Conv1D) else d.mT @ x


def is_router(path: Sequence[str], shape: Sequence[int]) -> bool:
    """Is a matrix of this shape `[out, in]`, at this path inside a layer, the router of a mixture of experts?"""
    return shape[0] == 1 or (shape[0] < shape[1] and not ROUTERS.isdisjoint(path))


def keep_orientation(weight: Tensor) -> Tensor:
    return weight


def flip_orientation(weight: Tensor) -> Tensor:
    return weight.transpose(-1, -2)


def count_experts(module: nn.Module, attribute: str, shape: Sequence[int]) -> int | None:
    """The number of matrices in a parameter of a module that is not linear; None if it is not a stack of matrices."""
    if attribute in STACKED_ROWS.get(type(module).__name__, {}):
        return find_number((module, "moe_num_experts")) or None
    return shape[0] if len(shape) == 3 and min(shape[1:]) > 1 else None


def select_expert(experts: int, expert: int) -> Part:
    """The view of one matrix in a stack `[expert, ., .]` or `[expert * ., .]`."""
    return lambda stack: stack.view(experts, -1, stack.shape[-1])[expert]


def experts_orientation(module: nn.Module, attribute: str, shape: Sequence[int], config: Any) -> Part:  # noqa: ANN401
    """The view that brings an expert's matrix to `[out, in]`: by the module's flag, else by the model's width."""
    flags = STACKED_ROWS.get(type(module).__name__, {})
    transposed = flags.get(attribute, getattr(module, "is_transposed", None))
    if transposed is None:
        hidden = find_number((config, "hidden_size"))
        side = 1 if attribute.startswith("down") else 2
        transposed = attribute != "weight" and shape[side] != hidden and shape[3 - side] == hidden
    return flip_orientation if transposed else keep_orientation


def _select_block(devices: int, blocks: int, block: int) -> Part:
    return lambda weight: _split_rows(weight, (devices, blocks, -1))[:, block]


def _split_rows(weight: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return weight.view(*shape, weight.shape[-1])


def find_number(*places: tuple[Any, str]) -> int | None:
    """The first of these attributes that is an integer, or None."""
    values = (getattr(owner, name, None) for owner, name in places)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def compose_parts(part: Part, whole: Part) -> Part:
    """Apply `whole`, then `part` to its result."""
    return lambda parameter: part(whole(parameter))


def see_bits(view: Tensor) -> Tensor:
    """The same memory viewed as integers; copying these preserves every bit, also those of NaNs."""
    return view.view(INTEGERS[view.element_size()])


def count_rows(view: Tensor) -> int:
    """Output rows of a view `[out..., in]`."""
    return math.prod(view.shape[:-1])
