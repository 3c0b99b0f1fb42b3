"""The reference: what the base model says, cached on disk by content.

Its tokens are consistent with the scoring pass: scored by that, the base agrees with every one of them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compressor.artifacts.checked_arrays import read_arrays, remove_litter, serialize_arrays, try_write
from compressor.artifacts.files import write_bytes
from compressor.contracts import Readout, Runners
from compressor.errors import ModelError
from compressor.models import Model
from compressor.models.forward import FrozenHead

log = logging.getLogger(__name__)
FORMAT = 2
COUNTS = ("prefix_tokens", "batch", "near_ties", "mended", "noise_floor")
"""What is stored beside the tokens."""
NEAR_TIE = 4.0
"""Two logits are a near tie if they differ by at most this many rounding steps of the larger one."""
LOGITS_AT_ONCE = 1 << 24
"""The largest number of logits of one batch, where the batch size is chosen automatically.

It is a constant, not a share of the memory budget: rounding, and so the base's tokens, depend on the shape of a batch.
"""
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}
"""The largest number of tokens of such a batch: activations should fit a CPU's cache; a GPU is faster with more."""
GENERATED_AT_ONCE = 1 << 14
"""The largest number of tokens of sequences that are generated together: their keys and values are in memory.

A step for many sequences takes hardly longer than for one, because it reads all weights. A constant, because rounding
depends on the shape here too.
"""


@dataclass
class Reference:
    """The base's continuations `tokens` `[sequence, prefix + continuation]`, and what gives its exact distribution.

    At every position of the continuation, one scoring pass of the base predicts the token that stands there.
    `near_ties` counts the positions where the two largest logits differ by a few rounding steps only, `mended` the
    tokens where generation step by step had chosen another token than the scoring pass. `noise_floor` is the mean
    FDT(F, F): the number of continuation tokens, unless the base disagrees with itself. `batch` is the number of
    sequences in a forward pass; it is part of the reference, because low-precision kernels may round differently for
    other shapes.

    The distribution is not stored as logits: for a vocabulary of 150,000 tokens, 64 x 64 positions would take 2.4 GB in
    float32. What is stored are the inputs of the LM head, `hidden` `[sequence, position, width]`, and the base's own
    `head`, which no change of the model reaches; the logits are computed from these, a batch at a time. Only where a
    model does not let its LM head run on its own are the `logits` `[sequence, position, vocabulary]` kept, in the
    model's dtype. Both are in the memory of the host. `runners` holds the runners-up that were found, by batch.

    `weights` `[sequence, position]` in float32 says how much each token but the last of a sequence counts in
    calibration data; None if all count the same.
    """

    tokens: Tensor
    prefix_tokens: int
    batch: int
    near_ties: int = 0
    mended: int = 0
    noise_floor: float = 0.0
    hidden: Tensor | None = field(default=None, repr=False)
    head: FrozenHead | None = field(default=None, repr=False)
    logits: Tensor | None = field(default=None, repr=False)
    runners: dict[tuple[int, int], Runners] = field(default_factory=dict, repr=False)
    weights: Tensor | None = field(default=None, repr=False)
    device: torch.device = field(default=torch.device("cpu"), repr=False)

    @property
    def continuation_tokens(self) -> int:
        return self.tokens.shape[1] - self.prefix_tokens

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """The index of the first sequence and the tokens of each batch, always split at the same places.

        `start` and `stop` choose sequences; only the first and the last batch can be smaller for that.
        """
        stop = len(self.tokens) if stop is None else min(stop, len(self.tokens))
        while start < stop:
            after = min(stop, (start // self.batch + 1) * self.batch)
            yield start, self.tokens[start:after]
            start = after

    def base_readout(self, start: int, count: int) -> Readout:
        """What the base says on `count` sequences from `start` on, on the device of the base."""
        rows = slice(start, start + count)

        def logits() -> Tensor:
            if self.logits is not None:
                return self.logits[rows].to(self.device)
            if self.hidden is None or self.head is None:
                raise ModelError("the base's distribution was not remembered; call remember_distribution first")
            return self.head(self.hidden[rows].to(self.device))

        tokens = self.tokens[rows, self.prefix_tokens :].to(self.device)
        return Readout(logits, tokens, runners=self.runners.setdefault((start, count), {}))

    def remember_distribution(self, model: Model, head: FrozenHead | None = None) -> None:
        """Store what gives the base's exact distribution; call it while `model` is the base.

        References of the same base can share a `head`; without one, it is made from the model.
        """
        keep, self.device, self.runners = self.continuation_tokens, model.device, {}
        self.hidden = self.head = self.logits = None
        try:
            hidden = torch.cat([model.hidden(batch[:, :-1], keep).cpu() for _, batch in self.batches()])
            self.head = head or model.freeze_head(hidden[:1, :2].to(model.device))
            self.hidden = hidden
        except ModelError as error:
            log.info("logits of the base are kept: %s", error)
            self.logits = torch.cat([model.logits(batch[:, :-1], keep).cpu() for _, batch in self.batches()])

    def weigh_by_margins(self) -> None:
        """Let a token t that predicts one of a continuation count w_t = r_t / mean(r) in calibration data.

        r_t ≤ 1 is the base's second largest probability divided by its largest, and the mean is over all such tokens.
        The others count 1, their mean: what the base predicts there is not compared, and so the prefixes keep their
        share. The base's distribution must have been remembered.
        """
        margins = [self.base_readout(start, len(rows)).runners_up(1)[1] for start, rows in self.batches()]
        # r is exp(−margin). A margin below 0 is a tie that the base's rounding decides otherwise now.
        logarithms = -torch.cat([margin[..., 0].cpu() for margin in margins]).clamp(min=0).double()
        # A softmax divides by the sum, and no margin is too wide for it.
        found = logarithms.numel() * logarithms.flatten().softmax(0).view_as(logarithms)
        self.weights = torch.ones(len(self.tokens), self.tokens.shape[1] - 1)
        self.weights[:, -self.continuation_tokens :] = found


def choose_batch(model: Model, length: int, continuation: int, wanted: int | None) -> int:
    """Sequences per forward pass: `wanted`, or a power of two up to 64 that keeps logits and activations small.

    It does not depend on free memory, because the same run must choose the same batches again.
    """
    if wanted is not None:
        return wanted
    tokens = TOKENS_AT_ONCE[model.device.type] // length
    limit = max(1, min(LOGITS_AT_ONCE // (continuation * model.vocabulary), tokens))
    return min(64, 1 << (limit.bit_length() - 1))


def score_greedily(model: Model, tokens: Tensor, keep: int) -> tuple[Tensor, int]:
    """The scoring pass on one batch: `[sequence, keep]` most likely tokens, and the number of near ties."""
    logits = model.logits(tokens[:, :-1], keep)
    top = logits.topk(2, dim=-1).values.float()
    if not top.isfinite().all():
        raise ModelError(f"the base's logits are not finite in {model.dtype}; use model.dtype=float32 or bfloat16")
    step = torch.finfo(logits.dtype).eps * top[..., 0].abs()
    near = int((top[..., 0] - top[..., 1] <= NEAR_TIE * step).sum())
    return logits.argmax(-1).cpu(), near


def continue_base(model: Model, prefixes: Tensor, continuation: int, batch: int) -> tuple[Tensor, int, int, float]:
    """What the base says after `prefixes` that are generated together: the tokens, near ties, mended tokens, and the
    sum of FDT(F, F) over the sequences.

    The base generates token by token. Then, until the scoring pass, in batches of `batch`, predicts every token: the
    first token of a sequence that it does not predict is replaced by the predicted one, and the base generates again
    from there.
    """
    prefix, mended = prefixes.shape[1], 0
    tokens = model.decode(prefixes, continuation, choose_likeliest).cpu()
    for _ in range(continuation + 1):
        scored = [score_greedily(model, part, continuation) for part in tokens.split(batch)]
        predicted, near = torch.cat([part for part, _ in scored]), sum(ties for _, ties in scored)
        agrees = predicted == tokens[:, prefix:]
        if agrees.all():
            break
        rows = (~agrees.all(1)).nonzero().flatten()
        leading = agrees[rows].long().cumprod(1).sum(1)
        tokens[rows, prefix + leading] = predicted[rows, leading]
        tokens[rows] = generate_again(model, tokens[rows], prefix + leading + 1)
        mended += len(rows)
    return tokens, near, mended, float(agrees.long().cumprod(1).sum())


def choose_likeliest(logits: Tensor) -> Tensor:
    """`[sequence]`: the tokens with the largest logits `[sequence, vocabulary]`."""
    return logits.argmax(-1)


def generate_again(model: Model, tokens: Tensor, starts: Tensor) -> Tensor:
    """`tokens` `[sequence, length]`, generated again from the positions `starts` `[sequence]` on, all together."""
    first = int(starts.min())
    positions = iter(range(first, tokens.shape[1]))

    def pick(logits: Tensor) -> Tensor:
        position = next(positions)
        return torch.where(starts > position, tokens[:, position], choose_likeliest(logits).cpu())

    return model.decode(tokens[:, :first], tokens.shape[1] - first, pick).cpu()


def build_reference(
    model: Model, prefixes: Tensor, continuation: int, batch: int | None = None, cache: Path | None = None
) -> Reference:
    """The reference of the base `model` for `prefixes` `[sequence, prefix]`, from the folder `cache` if it is there."""
    size = choose_batch(model, prefixes.shape[1] + continuation, continuation, batch)
    path = None if cache is None else cache / f"{fingerprint(model, prefixes, continuation, size)}.safetensors"
    if path is not None and (found := read_cached(path, prefixes, continuation, model.vocabulary)) is not None:
        return found
    together = size * max(1, GENERATED_AT_ONCE // (size * (prefixes.shape[1] + continuation)))
    parts = [continue_base(model, part, continuation, size) for part in prefixes.split(together)]
    reference = Reference(
        tokens=torch.cat([part[0] for part in parts]),
        prefix_tokens=prefixes.shape[1],
        batch=size,
        near_ties=sum(part[1] for part in parts),
        mended=sum(part[2] for part in parts),
        noise_floor=sum(part[3] for part in parts) / len(prefixes),
    )
    if reference.noise_floor < continuation:
        log.warning("the base disagrees with itself: FDT(F, F) is %.2f of %d", reference.noise_floor, continuation)
    if path is not None:
        write_cached(reference, path)
    return reference


def fingerprint(model: Model, prefixes: Tensor, continuation: int, batch: int) -> str:
    """sha256 of all that the reference depends on: weights, tokens, settings, dtype, device, library versions."""
    import transformers

    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    facts = [
        FORMAT, model.content_hash(), str(model.dtype), device, torch.__version__,
        transformers.__version__, continuation, batch, list(prefixes.shape), torch.get_num_threads(),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(prefixes.contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_reference(reference: Reference, path: Path) -> None:
    """Save tokens and counts in one atomic step; raises OutputError if they cannot be written."""
    metadata = {name: str(getattr(reference, name)) for name in COUNTS}
    write_bytes(path, *serialize_arrays({"tokens": reference.tokens.contiguous().numpy()}, metadata))


def write_cached(reference: Reference, path: Path) -> None:
    """Put a reference into the cache; a failure is one line of the log."""
    facts = {name: getattr(reference, name) for name in COUNTS}
    try_write(path, path.stem, {"tokens": reference.tokens.numpy()}, facts)
    remove_litter(path.parent)


def read_cached(path: Path, prefixes: Tensor, continuation: int, vocabulary: int) -> Reference | None:
    """The cached reference for these prefixes; None if there is none, or if it cannot be believed."""
    content = read_arrays(path, path.stem)
    if content is None:
        return None
    tokens, facts = content.arrays.get("tokens"), content.facts
    shape = (len(prefixes), prefixes.shape[1] + continuation)
    if tokens is None or tokens.shape != shape or tokens.dtype != np.int64 or not {*COUNTS} <= {*facts}:
        log.warning("the cached reference %s is not such as this run needs and is built anew", path.name)
        return None
    found = torch.from_numpy(tokens.copy())
    if (
        not torch.equal(found[:, : prefixes.shape[1]], prefixes.cpu())
        or not 0 <= found.min() <= found.max() < vocabulary
    ):
        log.warning("the cached reference %s has other tokens than this run needs and is built anew", path.name)
        return None
    return Reference(found, **{name: facts[name] for name in COUNTS})


def cache_folder() -> Path | None:
    """`$COMPRESSOR_CACHE`, else the user's cache folder; None, with a warning, where there is none."""
    given = os.environ.get("COMPRESSOR_CACHE")
    if given:
        return Path(given) / "references"
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if place.startswith("~"):
        log.warning("the user has no home directory, so nothing is cached; set COMPRESSOR_CACHE to a folder")
        return None
    return Path(place) / "compressor" / "references"
