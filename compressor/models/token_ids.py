"""Finds token ids without a row in the embedding, in every place that names ids."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compressor.errors import ModelError
from compressor.models.architectures import find_number
from compressor.models.checkpoint import GENERATION, read_generation


def find_bos(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The token that sequences begin with: that of the tokenizer, else that of the config; None if there is none."""
    return find_number((tokenizer, "bos_token_id"), (network.config.get_text_config(), "bos_token_id"))


def check_token_ids(folder: Path, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """A note for the user if there are ids without a row in the embedding that no score depends on.

    Raises ModelError if the token that sequences begin with is one of these.
    """
    rows = network.get_input_embeddings().weight.shape[0]
    found = [(source, token) for source, token in list_ids(folder, network, tokenizer) if not 0 <= token < rows]
    bos = find_bos(network, tokenizer)
    for source, token in found:
        if token == bos and "bos" in source:
            raise ModelError(
                f"{source} of `{folder}` is {token}, and the embedding has rows for 0 to {rows - 1}; sequences begin "
                "with it, correct it there or set it to null"
            )
    # -1 is a customary sign for "none".
    told = [f"{source} {token}" for source, token in found if token != -1]
    if not told:
        return []
    more = f" and {len(told) - 3} more" if told[3:] else ""
    return [f"Token ids beyond the embedding, which has {rows} rows: {', '.join(told[:3])}{more}. No score uses them."]


def list_ids(
    folder: Path, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[str, int]]:
    """(source, id) of every special token: in config.json, generation_config.json, and the tokenizer."""
    yield from _list_named("config.json", vars(network.config.get_text_config()))
    yield from _list_named(GENERATION, read_generation(folder))
    if tokenizer is None:
        return
    for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"):
        token = getattr(tokenizer, f"{name}_token_id", None)
        if isinstance(token, int):
            yield f"`{name}_token_id` of the tokenizer", token
    for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        yield f"the added token {str(added)!r:.40}", token


def _list_named(file: str, values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if name.endswith("_token_id"):
            for token in value if isinstance(value, list) else [value]:
                if isinstance(token, int):
                    yield f"`{name}` of {file}", token
