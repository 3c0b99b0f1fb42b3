"""Prefixes, which the base continues, and windows of natural text, on which perplexity is measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from compressor.contracts import TextWindows, TrainingTexts
from compressor.data.sampling import sample_sequences
from compressor.data.text_files import Text, choose_column, join_rows, read_text
from compressor.errors import CompressorError, ConfigError, DataError, naming
from compressor.models import Model
from compressor.settings import DataSettings

ROWS_AT_ONCE = 1000
"""Rows of a streamed data set that are encoded together."""
LONGEST_WINDOW = 2048
"""Tokens of a window of text, where the metric names no number: the usual one for perplexity."""


@dataclass(frozen=True)
class Windows:
    """Windows of text: `tokens` `[sequence, length]`; `counted` `[sequence, length - 1]` is true for scored tokens.

    `notes` say how the text was read.
    """

    source: str
    tokens: Tensor
    counted: Tensor
    notes: tuple[str, ...] = ()


def check_settings(settings: DataSettings, context: int | None) -> None:
    """Raise ConfigError for invalid lengths and counts."""
    for key in ("prefixes", "prefix_tokens", "continuation_tokens", "proof_prefixes"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise ConfigError(f"`data.{key}` must be at least 1, got {value}; raise it")
    length = settings.prefix_tokens + settings.continuation_tokens
    if context is not None and length > context:
        raise ConfigError(
            f"`data.prefix_tokens` + `data.continuation_tokens` must be at most the model's context of {context}, "
            f"got {length}; lower one of them"
        )


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Raise DataError for a data set that cannot be loaded."""
    try:
        yield
    except CompressorError:
        raise
    except Exception as error:  # datasets raises some twenty kinds of errors for a missing name, split or network
        reason = " ".join(str(error).split())
        raise DataError(f"cannot load data set `{name}`: {reason}; check its name and split") from None


def load_hub_text(settings: DataSettings) -> Text:
    """A column of a Hugging Face data set."""
    import datasets

    assert settings.name, "checked before"
    with loading(settings.name):
        rows = datasets.load_dataset(settings.name, settings.subset, split=settings.split)
    source = f"data set `{settings.name}`"
    columns = list(rows.column_names)
    chosen = choose_column(columns, settings.column, source, "data.column")
    return join_rows(rows[chosen], chosen, columns, settings.column, source, "data.column")


def load_text(settings: DataSettings) -> Text | None:
    """The natural text of the run; None for `data=self`."""
    if settings.source == "self":
        return None
    if settings.source == "hf":
        return load_hub_text(settings)
    assert settings.path, "checked before"
    with naming("data.path"):
        text = read_text(settings.path, settings.column, "data.column")
    if settings.column is not None and text.column is None:
        raise ConfigError(
            f"`data.column` is {settings.column}, and {settings.path} is plain text without columns; leave it out"
        )
    return text


def encode_text(model: Model, text: str) -> Tensor:
    """Token ids `[position]` of the text, with a BOS if the tokenizer adds one."""
    if model.tokenizer is None:
        raise DataError(f"{model.folder} has no tokenizer, which text needs; add one or use data=self")
    ids = model.tokenizer(text, verbose=False).input_ids
    rows = model.network.get_input_embeddings().weight.shape[0]
    if beyond := [token for token in ids if not 0 <= token < rows]:
        raise DataError(
            f"the tokenizer of {model.folder} gives the id {beyond[0]}, and the embedding has {rows} rows; give the "
            "tokenizer that belongs to the model, or use data=self"
        )
    return torch.tensor(ids, dtype=torch.int64)


def cut_prefixes(model: Model, ids: Tensor, count: int, settings: DataSettings, source: str) -> Tensor:
    """`[sequence, prefix_tokens]`: prefixes from random disjoint parts of the text, in random order."""
    stretch = settings.prefix_tokens + settings.continuation_tokens
    available = len(ids) // stretch
    if available < count:
        raise DataError(
            f"{source} holds {len(ids)} tokens, {available} stretches of {stretch} (prefix + continuation); {count} "
            f"are needed for search and proof; give more text or lower `data.prefixes`"
        )
    generator = torch.Generator().manual_seed(settings.seed)
    starts = torch.randperm(available, generator=generator)[:count] * stretch
    offset = int(torch.randint(len(ids) - available * stretch + 1, (), generator=generator))
    prefixes = torch.stack([ids[offset + s : offset + s + settings.prefix_tokens] for s in starts.tolist()])
    if model.adds_bos and model.bos is not None:
        prefixes[:, 0] = model.bos
    return prefixes


def make_prefixes(
    model: Model, settings: DataSettings, text: str | None, with_proof: bool = True
) -> tuple[Tensor, Tensor]:
    """Prefixes for the search and other ones for the final score, each `[sequence, prefix_tokens]`.

    Without `with_proof`, there are none for the final score; those for the search are the same. Raises ConfigError for
    invalid settings, and DataError for a text that is too short.
    """
    check_settings(settings, model.context)
    proof = settings.prefixes if settings.proof_prefixes is None else settings.proof_prefixes
    if text is None:
        search = sample_sequences(model, settings.prefixes, settings.prefix_tokens, 2 * settings.seed)
        if not with_proof:
            return search, search[:0]
        return search, sample_sequences(model, proof, settings.prefix_tokens, 2 * settings.seed + 1)
    source = settings.path or settings.name or "the text"
    count = settings.prefixes + (proof if with_proof else 0)
    both = cut_prefixes(model, encode_text(model, text), count, settings, source)
    return both[: settings.prefixes], both[settings.prefixes :]


def cut_windows(ids: Tensor, window: int, stride: int, source: str) -> Windows:
    """Windows of `window` tokens, `stride` tokens apart. Together they score every token after the first exactly once.

    The last one is the first that reaches the end of the text; it is padded, and padding is not scored.
    """
    if len(ids) < 2:
        raise DataError(f"{source} holds {len(ids)} tokens; at least 2 are needed for perplexity; give more text")
    rows, counted, scored_to = [], [], 1
    for start in range(0, max(0, len(ids) - window) + stride, stride):
        row = ids[start : start + window]
        positions = torch.arange(start + 1, start + window)
        counted.append((positions >= scored_to) & (positions < len(ids)))
        scored_to = start + len(row)
        rows.append(torch.nn.functional.pad(row, (0, window - len(row))))
    return Windows(source, torch.stack(rows), torch.stack(counted))


def make_windows(model: Model, request: TextWindows, settings: DataSettings, text: str | None) -> Windows:
    """The windows that a metric asks for: of its own text, else of the run's text, else of sequences from the base."""
    notes: tuple[str, ...] = ()
    if request.path is not None:
        own = read_text(request.path)
        text, source, notes = own.content, request.path, own.notes
    else:
        source = settings.path or settings.name or "the run's text"
    context = model.context or LONGEST_WINDOW
    window = min(request.window or LONGEST_WINDOW, context)
    if text is None:
        length = min(window, settings.prefix_tokens + settings.continuation_tokens)
        count = max(1, min(request.tokens or 2**14, 2**14) // length)
        tokens = sample_sequences(model, count, length, 2 * settings.seed + 1_000_001)
        return Windows("sequences sampled from the base", tokens, torch.ones_like(tokens[:, 1:], dtype=torch.bool))
    ids = encode_text(model, text)[: request.tokens]
    window = min(window, len(ids))
    return replace(cut_windows(ids, window, min(request.stride or window, window), source), notes=notes)


def stream_tokens(model: Model, request: TrainingTexts) -> Tensor:
    """Token ids `[position]` from the beginning of a data set of the hub; no more of it is read than is needed."""
    import datasets

    assert request.dataset, "checked before"
    found, needed = torch.empty(0, dtype=torch.int64), request.windows * request.tokens
    source = f"data set `{request.dataset}`"
    with loading(request.dataset):
        rows = iter(datasets.load_dataset(request.dataset, request.subset, split=request.split, streaming=True))
        while len(found) < needed and (some := list(islice(rows, ROWS_AT_ONCE))):
            columns = list(some[0])
            column = choose_column(columns, None, source)
            text = join_rows((row.get(column) for row in some), column, columns, column, source)
            found = torch.cat([found, encode_text(model, text.content)])
    return found[:needed]


def check_training_texts(request: TrainingTexts, context: int | None, key: str) -> None:
    """Raise ConfigError for windows that are longer than the model's context; `key` is what sets their length."""
    if context is not None and request.tokens > context:
        raise ConfigError(f"{key} must be at most the model's context of {context}, got {request.tokens}; lower it")


def make_training_texts(model: Model, request: TrainingTexts, seed: int, key: str) -> Tensor:
    """`[window, position]`: texts for training, from a source or sampled from the model, which must be the base now.

    Windows of a source follow each other without padding. If a file has more than are wanted, they are chosen at
    random; a data set is read up to as many. If there are fewer, all are taken. The order is random. Raises DataError
    for a source that is shorter than a window, whose length is set by `key`.
    """
    if request.are_sampled:
        return sample_sequences(model, request.windows, request.tokens, 2 * seed + 2_000_003)
    ids = stream_tokens(model, request) if request.path is None else encode_text(model, read_text(request.path).content)
    windows = ids[: len(ids) // request.tokens * request.tokens].view(-1, request.tokens)
    if not len(windows):
        raise DataError(
            f"{request.path or request.dataset} holds {len(ids)} tokens, fewer than a window of {request.tokens}; give "
            f"more text or lower {key}"
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[: request.windows]]
