"""Converts a tokenizer for llama.cpp: byte-level BPE, or SentencePiece's BPE with scores."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {None: "gpt-2", rf"{_WORDS}|\p{{N}}|{_REST}": "qwen2", rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe"}
"""Regular expression that splits text into words -> llama.cpp's name of it; None is the expression of GPT-2."""
ALIKE: tuple[Any, ...] = (None, {"type": "NFC"})
"""Normalizers that llama.cpp does not have, but that change text very rarely."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
WORD = "▁"
"""SentencePiece's mark of the start of a word."""
UNKNOWN = (
    "its tokenizer is neither byte-level BPE, splitting words as GPT-2, Qwen2 or Llama 3 do, nor SentencePiece's BPE"
)
Type = gguf.TokenType


@dataclass(frozen=True)
class Vocabulary:
    """`tokens` and `types` by id. The kind `gpt2` has `merges` and the name `split`, the kind `llama` has `scores`."""

    kind: str
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    split: str | None = None
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: Mapping[str, int] = field(default_factory=dict)
    template: str | list[dict[str, str]] | None = None
    """The chat template, or several with their names."""

    def write(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.kind)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.split:
            writer.add_tokenizer_pre(self.split)
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        if self.template:
            writer.add_chat_template(self.template)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> Vocabulary | str:
    """The vocabulary for a model with `size` embeddings, or the reason why llama.cpp does not support it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    model = described.get("model", {})
    if model.get("type") != "BPE":
        return UNKNOWN
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokens, types = list_tokens(described, size)
    named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    special = {name: number for name, number in named.items() if number is not None and number < size}
    split, template = name_split(described), read_template(tokenizer)
    if split:
        lines = [" ".join(merge) for merge in merges]
        return Vocabulary("gpt2", tokens, types, split, merges=lines, special=special, template=template)
    if not marks_words(described):
        return UNKNOWN
    ranks = {first + second: -float(rank) for rank, (first, second) in reversed([*enumerate(merges, start=1)])}
    scores = [ranks.get(token, 0.0) for token in tokens]
    return Vocabulary("llama", tokens, types, scores=scores, special=special, template=template)


def read_template(tokenizer: PreTrainedTokenizerBase) -> str | list[dict[str, str]] | None:
    """The tokenizer's chat template, which transformers reads from a file of its own or from tokenizer_config.json."""
    template: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": one} for name, one in template.items()]
    return template


def list_tokens(described: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and their types by id. Ids without a token are unused; tokens without an embedding are left out."""
    model, added = described["model"], described["added_tokens"]
    tokens, types = [f"[unused{number}]" for number in range(size)], [int(Type.UNUSED)] * size
    has_bytes = model.get("byte_fallback")  # then <0x0A> stands for a byte
    kinds = {token: Type.BYTE if has_bytes and BYTE.fullmatch(token) else Type.NORMAL for token in model["vocab"]}
    found = [(number, token, kinds[token]) for token, number in model["vocab"].items()]
    found += [(one["id"], one["content"], Type.CONTROL if one["special"] else Type.USER_DEFINED) for one in added]
    for number, token, kind in found:
        if number < size:
            tokens[number], types[number] = token, int(Type.UNKNOWN if token == model.get("unk_token") else kind)
    return tokens, types


def name_split(described: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the word splitting before byte-level BPE; None for other tokenizers."""
    steps = unfold(described.get("pre_tokenizer"), "pretokenizers")
    last = steps.pop() if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or described.get("normalizer") not in ALIKE:
        return None
    if last.get("use_regex", True):
        return None if steps else SPLITS[None]
    if len(steps) != 1 or steps[0].get("type") != "Split" or steps[0].get("behavior") != "Isolated":
        return None
    return SPLITS.get(steps[0]["pattern"].get("Regex"))


def marks_words(described: Mapping[str, Any]) -> bool:
    """Whether the tokenizer marks every word (the first too) as SentencePiece does, and has a token for every byte."""
    steps = unfold(described.get("normalizer"), "normalizers") + unfold(described.get("pre_tokenizer"), "pretokenizers")
    prepends = any(step.get("prepend") == WORD or step.get("prepend_scheme") in ("first", "always") for step in steps)
    return prepends and bool(described["model"].get("byte_fallback"))


def unfold(step: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The steps of a sequence, or the single step as a list."""
    if step is None:
        return []
    return list(step[key]) if step["type"] == "Sequence" else [step]
