"""What it takes to make the texts of a run: told before any is made, and refused where it cannot fit into memory.

The base writes prefixes and their continuations, and texts for training, token by token:

    seconds ≤ tokens · seconds of a token in a trial of a few tokens
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from compressor.commands.setup import RunSetup
from compressor.contracts import Prefixes
from compressor.contracts.declarations import name_option
from compressor.data.sampling import SAMPLED_AT_ONCE
from compressor.errors import CannotFit
from compressor.models import Model
from compressor.progress import Progress
from compressor.report.formatting import format_bytes, format_seconds
from compressor.resources import read_host_memory
from compressor.settings import DataSource

COPIES = 2
"""Parts are joined to a whole, and for a moment both are there."""
FEW = 1 << 16
"""So few tokens take too little time to be worth a trial."""
TRIED = 4
"""Tokens of each sequence in the trial."""
TOLD = 60.0
"""Seconds from which on the cost is told."""


@dataclass(frozen=True)
class TextCost:
    """By setting, such as `data.prefixes`: the `count` that it gives, `tokens` that the base writes, and `bytes`."""

    count: Mapping[str, int]
    tokens: Mapping[str, int]
    bytes: Mapping[str, int]

    def check(self, limit: int) -> None:
        """Raise CannotFit where the texts need more memory than the host has, or than the `limit` of the run."""
        memory = read_host_memory()
        if memory is None:
            return
        needed, most_bytes = sum(self.bytes.values()), min(memory.available, limit)
        free, lacking = max(0, most_bytes - memory.used), memory.used + needed - most_bytes
        if lacking <= 0:
            return
        key = max(self.bytes, key=lambda name: self.bytes[name])
        most = max(0, free - needed + self.bytes[key]) * self.count[key] // self.bytes[key]
        fix = f"lower it to at most {most}" if most else "lower it, or take shorter texts"
        if limit < memory.available:
            fix = f"{f'{fix}, or ' if most else ''}raise memory.host by {format_bytes(lacking)}"
        setting = f"{key}, {self.count[key]}," if "`" in key else f"`{key}={self.count[key]}`"
        raise CannotFit(
            f"{setting} needs {format_bytes(self.bytes[key])} of memory for its texts, and the run can "
            f"have {format_bytes(free)}; {fix}"
        )

    def tell(self, model: Model, progress: Progress) -> None:
        """Say what the texts take, if that is long."""
        tokens = sum(self.tokens.values())
        if tokens <= FEW or (seconds := tokens * try_token(model)) < TOLD:
            return
        progress.say(
            f"expected cost of the texts: {tokens:,} tokens that the base writes, at most {format_seconds(seconds)}, "
            f"{format_bytes(sum(self.bytes.values()))} of memory"
        )


def try_token(model: Model) -> float:
    """Seconds of a token that the base writes, where many sequences are written together."""
    first = torch.zeros(SAMPLED_AT_ONCE, 1, dtype=torch.int64)
    began = time.perf_counter()
    model.decode(first, TRIED, lambda logits: logits.argmax(-1))
    return (time.perf_counter() - began) / (SAMPLED_AT_ONCE * TRIED)


def count_texts(setup: RunSetup, wanted: Sequence[Prefixes], trains: bool) -> TextCost:
    """The cost of the `wanted` prefixes with their continuations, and where a run `trains`, of texts for that."""
    settings, data, model = setup.settings, setup.settings.data, setup.model
    size = torch.int64.itemsize
    hidden = model.network.get_input_embeddings().weight.shape[1] * model.dtype.itemsize if setup.reads_base else 0
    written = data.continuation_tokens + (data.prefix_tokens if data.source is DataSource.self else 0)
    stored = size * (data.prefix_tokens + data.continuation_tokens) + hidden * data.continuation_tokens
    count, tokens, needed = dict[str, int](), dict[str, int](), dict[str, int]()

    def add(key: str, number: int, tokens_of_one: int, bytes_of_one: int) -> None:
        count[key] = max(count.get(key, 0), number)
        tokens[key] = tokens.get(key, 0) + number * tokens_of_one
        needed[key] = needed.get(key, 0) + COPIES * number * bytes_of_one

    for which in wanted:
        is_own = which is Prefixes.PROOF and data.proof_prefixes is not None
        number = data.proof_prefixes if is_own else data.prefixes
        assert number is not None
        add("data.proof_prefixes" if is_own else "data.prefixes", number, written, stored)
    texts = setup.requests.texts if trains and setup.requests else None
    if settings.recovery is not None and texts is not None and texts.path is None:  # a file has what it holds
        key = name_option(settings.recovery, "windows", "TrainingTexts")
        add(
            "recovery.windows" if key == "`recovery.windows`" else key,
            texts.windows,
            texts.tokens if texts.are_sampled else 0,
            size * texts.tokens,
        )
    return TextCost(count, tokens, needed)
