"""The model families that can be written as GGUF, their metadata for llama.cpp, and the order of rows."""

from collections.abc import Collection
from dataclasses import dataclass

import gguf
import torch
from transformers import PreTrainedConfig

UNBIASED = ("llama", "mistral", "qwen3")
"""Families whose GGUF files cannot have biases."""


@dataclass(frozen=True)
class Family:
    """llama.cpp's `architecture`. With `interleaves`, the two halves of a rotary embedding are in neighbouring rows."""

    architecture: gguf.MODEL_ARCH
    interleaves: bool

    def name_tensor(self, path: str, config: PreTrainedConfig) -> str:
        """llama.cpp's name for the parameter at `path`."""
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
    """Why a model with this config and these parameter names cannot be written as GGUF; None if it can."""
    if config.model_type not in FAMILIES:
        return f"its family is `{config.model_type}`, and only {', '.join(FAMILIES)} are supported"
    if (scaling := config.rope_parameters.get("rope_type", "default")) != "default":
        return f"its rotary embedding is of the type `{scaling}`, and only `default` is supported"
    slides = config.model_type == "mistral" and config.sliding_window is not None
    if slides or "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "it has sliding window attention, which llama.cpp would ignore"
    if config.model_type in UNBIASED and any(name.endswith(".bias") for name in parameters):
        return "its matrices have biases, which readers of the file would ignore"
    width, assumed = read_head_width(config), read_head_width(type(config)()) if config.model_type == "qwen3" else None
    if assumed not in (None, width):
        return f"its heads are {width} wide, but transformers assumes a width of {assumed} in such a file"
    return None


def describe(config: PreTrainedConfig, writer: gguf.GGUFWriter) -> None:
    """Add the metadata of the layers that llama.cpp needs."""
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
    """The order of the rows of the matrix at `path` in the file, `[out]`; None if it does not change."""
    if not FAMILIES[config.model_type].interleaves or not path.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    return torch.arange(rows).view(-1, 2, read_head_width(config) // 2).transpose(1, 2).flatten()
