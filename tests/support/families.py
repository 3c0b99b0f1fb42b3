"""Tiny random models of many families, and checkpoints of them, for tests that must not depend on one family.

`FAMILIES` are those that every part of the project must handle; `ODDITIES` are further layouts and forward passes.
Tests of `each` of them run with the five of `USUAL` by default, or with `TWO`; with all others where slow tests
run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from compressor.models.loading import quiet_loading

VOCABULARY = 160
CONTEXT = 64
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = {
    **_TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 48}
_GATED_HEADS = {**_GROUPED, "head_dim": 16}
_SHORT_NAMES = {**_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.2}
_EXPERTS = {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2, "output_router_logits": False}
_FALCON = {**_COMMON, "alibi": False, "bias": False, "parallel_attn": True, "tie_word_embeddings": True}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_GROUPED}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**_GATED_HEADS}),
    "gemma2": ("Gemma2Config", {**_GATED_HEADS, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {**_GATED_HEADS, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gpt2": ("GPT2Config", {**_SHORT_NAMES}),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "gpt_neox": ("GPTNeoXConfig", {**_COMMON, "intermediate_size": 48}),
    "phi3": ("Phi3Config", {**_GROUPED, "original_max_position_embeddings": CONTEXT}),
    "mixtral": ("MixtralConfig", {**_EXPERTS, "sliding_window": None}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **_GATED_HEADS,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "mlp_only_layers": [1],
        },
    ),
    "falcon": ("FalconConfig", {**_FALCON, "multi_query": True}),
    "bloom": ("BloomConfig", {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}),
}
ODDITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon_grouped": ("FalconConfig", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("FalconConfig", {**_FALCON, "multi_query": False, "alibi": True, "bias": True}),
    "gpt_oss": ("GptOssConfig", {**_EXPERTS, "head_dim": 8, "sliding_window": 8}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **_GROUPED,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {**_EXPERTS, "head_dim": 8, "intermediate_size_mlp": 40, "moe_layers": [0], "attention_chunk_size": 16},
    ),
    "dbrx": (
        "DbrxConfig",
        {
            **_TOKENS,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": CONTEXT,
            "initializer_range": 0.2,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 3, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}},
        },
    ),
    "codegen": ("CodeGenConfig", {**_SHORT_NAMES, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeConfig", {**_SHORT_NAMES, "multi_query": False}),
    "gpt_bigcode_grouped": ("GPTBigCodeConfig", {**_SHORT_NAMES, "multi_query": True}),
    "granitemoeshared": ("GraniteMoeSharedConfig", {**_EXPERTS, "shared_intermediate_size": 24, "logits_scaling": 3.0}),
    "cohere": ("CohereConfig", {**_GROUPED, "logit_scale": 0.5}),
    "modernbert_decoder": ("ModernBertDecoderConfig", {**_COMMON, "intermediate_size": 48}),
    "gptj": ("GPTJConfig", {**_SHORT_NAMES, "rotary_dim": 4}),
    "mpt": (
        "MptConfig",
        {**_TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT, "initializer_range": 0.2},
    ),
    "mamba": ("MambaConfig", {**_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2}),
}


USUAL = ("llama", "gpt2", "phi3", "mixtral", "gemma3")
"""Separate matrices; weights stored `[in, out]`; fused q, k, v; stacked experts; more norms and sliding windows."""


TWO = ("llama", "mixtral")
"""Of the usual families the plainest and the strangest, for tests that take long with each."""


def each(families: Iterable[str], always: Collection[str] = USUAL) -> list[Any]:
    """Parameters of a test: the families, and the mark `slow` on those that are not `always` tested."""
    return [pytest.param(name, marks=() if name in always else pytest.mark.slow) for name in families]


def make_network(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:  # noqa: ANN401 - any config value
    """A random network, the same for the same seed, in float32 and evaluation mode; biases are random too."""
    class_name, values = (FAMILIES | ODDITIES)[family]
    with quiet_loading(torch.device("cpu")):
        torch.manual_seed(seed)
        config = getattr(transformers, class_name)(**{**values, **overrides})
        network: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


def save_checkpoint(
    family: str,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    with_tokenizer: bool = False,
    shard_size: str = "5GB",
    **overrides: Any,  # noqa: ANN401 - any config value
) -> Path:
    """Save the network of `make_network` as transformers does, in shards of at most this size; returns the folder."""
    network = make_network(family, seed, **overrides)
    with quiet_loading(torch.device("cpu")):
        network.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    if with_tokenizer:
        save_tokenizer(folder, VOCABULARY)
    return folder


def save_tokenizer(folder: Path, vocabulary: int = VOCABULARY, adds_bos: bool = True) -> None:
    """A tokenizer of printable ASCII characters and, as far as `vocabulary` reaches, pairs of letters.

    Its ids fill the vocabulary, and decoding gives the text back.
    """
    # ByteLevel writes a space as Ġ and a line feed as Ċ; other characters of ASCII as they are.
    characters = ["Ċ", "Ġ", *(chr(code) for code in range(33, 127))]
    letters = "etaoinshrdlucmfwygpbvkxqjz"
    pairs = [(first, second) for first in letters for second in letters]
    tokens = [*SPECIAL_TOKENS, *characters]
    merges = pairs[: vocabulary - len(tokens)]
    tokens += [first + second for first, second in merges]
    assert len(tokens) == vocabulary, "the vocabulary must have room for all characters"
    model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    with quiet_loading(torch.device("cpu")):
        fast.save_pretrained(folder)
