"""Checks the values of a model's config.json before a network is built, so that an error names the key and its rule."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compressor.errors import ModelError, suggest

COUNTS = re.compile(
    r"(hidden_size|n_embd|d_model|(num_)?(hidden_)?layers|n_layers?|(num|n)_(attention_|key_value_|kv_)?heads?|head_dim"
    r"|intermediate_size|ffn_dim|vocab_size|max_position_embeddings|n_positions|max_seq_len)"
)
"""Keys of numbers of which no network has less than one. Others, such as the number of experts, may be 0."""
MAYBE_NONE = re.compile(r"(num|n)_(\w+_)?experts(_per_tok)?|(moe_|shared_)\w*intermediate_size|sliding_window|n_inner")
"""Keys of numbers that are 0 or null where a network has none of them."""
LISTED = re.compile(r"num_labels|(num_)?(\w*hidden_)?layers|n_layers?")
"""Keys of numbers for each of which a config makes an entry of a list."""
MOST_LISTED = 100_000
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
CHOSEN = "num_experts_per_tok"
DTYPES = ("dtype", "torch_dtype")
OBJECTS = ("auto_map", "base_model_pp_plan", "base_model_tp_plan", "quantization_config", "text_config")
NAMES = ("_attn_implementation", "attn_implementation", *DTYPES)
ROPE = ("rope_parameters", "rope_scaling")
ROPE_NUMBERS = re.compile(r"rope_theta|rope_local_base_freq|rotary_emb_base|factor")
"""Keys of numbers above 0 for rotary position embeddings, at the top of a config or inside of `ROPE`."""
EPSILON = re.compile(r"\w*_(eps|epsilon)")
KNOWN = {"rope_type": ROPE_INIT_FUNCTIONS, "type": ROPE_INIT_FUNCTIONS}
"""Keys of names -> what they may name. The other names in a config are those of activation functions."""


def check_values(values: Mapping[str, object], path: Path) -> None:
    """Raise ModelError for values in the config of a model, read from `path`, that no network can have."""
    _check_kinds(values, path)
    text = values.get("text_config")
    for part in (values, text if isinstance(text, Mapping) else {}):
        for key, value in part.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                _check_number(key, value, path)
            if key in DTYPES and isinstance(value, str) and not _is_dtype(value):
                raise _refuse(key, "the name of a dtype of torch, such as bfloat16", value, path)
            if key in ROPE or ROPE_NUMBERS.fullmatch(key):
                _check_rope(key, value, path)
        _check_experts(part, path)


def explain_failure(values: Mapping[str, object], error: Exception, path: Path) -> ModelError | None:
    """The error for a network that cannot be built from these values, if one of them is the cause; else None.

    transformers looks names up in tables, and raises KeyError for one that is not there.
    """
    if isinstance(error, KeyError) and error.args:
        for key, value in _list_leaves(values):
            if isinstance(value, str) and value == error.args[0]:
                known = KNOWN.get(key.rpartition(".")[2], ACT2FN)
                return _refuse(key, "a name that transformers knows", value, path, suggest(value, known))
    if "adding_idx" in str(error):
        rule = "an id below `vocab_size`, or null"
        return _refuse("pad_token_id", rule, values.get("pad_token_id"), path)
    return None


def _check_kinds(values: Mapping[str, object], path: Path) -> None:
    """Raise ModelError for entries of another type than they have in every config."""
    for rule, kind, keys in (
        ("a JSON object", Mapping, OBJECTS),
        ("a name", str, NAMES),
        ("a list of class names", list, ["architectures"]),
    ):
        for key in keys:
            value = values.get(key)
            names = value if isinstance(value, list) else []
            if value is not None and not (isinstance(value, kind) and all(isinstance(name, str) for name in names)):
                raise _refuse(key, rule, value, path)


def _check_number(key: str, value: float, path: Path) -> None:
    if COUNTS.fullmatch(key) and value < 1:
        raise _refuse(key, "at least 1", value, path)
    if isinstance(value, int) and value.bit_length() > 63:
        raise _refuse(key, "an integer of 64 bits", value, path)
    if LISTED.fullmatch(key) and value > MOST_LISTED:
        raise _refuse(key, f"at most {MOST_LISTED}", value, path)
    if MAYBE_NONE.fullmatch(key) and value < 0:
        raise _refuse(key, "at least 0", value, path)
    if EPSILON.fullmatch(key) and not 0 <= value < math.inf:
        raise _refuse(key, "finite and at least 0", value, path)


def _check_experts(part: Mapping[str, object], path: Path) -> None:
    """Raise ModelError if a token goes to more experts than there are, or to none of them."""
    experts = next((count for key in EXPERTS if type(count := part.get(key)) is int), 0)
    chosen = part.get(CHOSEN)
    if experts and type(chosen) is int and not 1 <= chosen <= experts:
        raise _refuse(CHOSEN, f"from 1 to the {experts} experts", chosen, path)


def _check_rope(key: str, value: object, path: Path) -> None:
    """Raise ModelError for a number that rotary position embeddings cannot have; `value` may hold further keys."""
    for name, one in _list_leaves({key: value}):
        if not ROPE_NUMBERS.fullmatch(name.rpartition(".")[2]) or isinstance(one, list | None):
            continue  # some families have one for each layer
        if not isinstance(one, int | float) or isinstance(one, bool) or not 0 < one < math.inf:
            raise _refuse(name, "a finite number above 0", one, path)


def _is_dtype(name: str) -> bool:
    return name == "auto" or isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)


def _list_leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of everything that is no mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _list_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse(key: str, rule: str, value: object, path: Path, fix: str = "correct it") -> ModelError:
    return ModelError(f"`{key:.80}` of `{path}` must be {rule}, got {value!r:.80}; {fix}")
