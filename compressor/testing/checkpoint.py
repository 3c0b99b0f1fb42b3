"""A tiny checkpoint for end-to-end tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def make_tiny_checkpoint(folder: str | Path, seed: int = 0) -> Path:
    """Save a random Llama of two layers with a byte-level tokenizer to `folder`, in the format of transformers.

    Its weights are large enough that its most likely tokens have clear margins and change with compression. It works
    offline and does not change the global random generators. Returns `folder`.
    """
    tokenizer = make_byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with <unk>, <s>, </s> and one token for each of the 256 bytes. Every text starts with <s>."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    symbols = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)
