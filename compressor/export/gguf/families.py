"""Which models llama.cpp runs by a file of ours, what it wants to be told of them, and how it orders their rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import gguf
import torch
from transformers import PreTrainedConfig

UNBIASED = ("llama", "mistral", "qwen3")
"""Families in whose files no bias is expected."""


@dataclass(frozen=True)
class Family:
    """llama.cpp's `architecture`; where it `interleaves`, both halves of a rotation are in neighbouring rows."""

    architecture: gguf.MODEL_ARCH
    interleaves: bool

    @property
    def name(self) -> str:
        return str(gguf.MODEL_ARCH_NAMES[self.architecture])

    def name_tensor(self, path: str, config: PreTrainedConfig) -> str:
        """What llama.cpp calls the parameter at `path`."""
        names = gguf.get_tensor_name_map(self.architecture, config.num_hidden_layers)
        named = names.get_name(path, try_suffixes=(".weight", ".bias"))
        assert named is not None, f"there is no {path} in llama.cpp"
        return str(named)


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, interleaves=True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, interleaves=True),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, interleaves=False),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, interleaves=False),
}
"""By model_type."""


def find_obstacle(config: PreTrainedConfig, parameters: Collection[str]) -> str | None:
    """Why there can be no GGUF of a model of this config, with `parameters` of these names; None if there can."""
    if config.model_type not in FAMILIES:
        return f"its family is `{config.model_type}`, and only {', '.join(FAMILIES)} are known how to write"
    if (scaling := config.rope_parameters.get("rope_type", "default")) != "default":
        return f"its rotary embedding is of the type `{scaling}`, and only `default` is known how to write"
    slides = config.model_type == "mistral" and config.sliding_window is not None
    if slides or "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "it attends to a sliding window, of which llama.cpp would not know"
    if config.model_type in UNBIASED and any(name.endswith(".bias") for name in parameters):
        return "its matrices have biases, of which a reader of the file would not know"
    width, assumed = read_head_width(config), read_head_width(type(config)()) if config.model_type == "qwen3" else None
    if assumed not in (None, width):
        return f"its heads are {width} wide, and transformers takes them for {assumed} wide in such a file"
    return None


def describe(config: PreTrainedConfig, writer: gguf.GGUFWriter) -> None:
    """Add what llama.cpp needs to know of the layers."""
    width = read_head_width(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def read_head_width(config: PreTrainedConfig) -> int:
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def order_rows(path: str, rows: int, config: PreTrainedConfig) -> torch.Tensor | None:
    """Which rows of the matrix at `path` go where in the file, `[out]`; None where they stay as they are."""
    if not FAMILIES[config.model_type].interleaves or not path.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    return torch.arange(rows).view(-1, 2, read_head_width(config) // 2).transpose(1, 2).flatten()
