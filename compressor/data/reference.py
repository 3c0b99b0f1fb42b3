"""What the base says: its own tokens, made consistent with its own scoring pass, cached on disk by content."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from compressor.artifacts.files import write_bytes
from compressor.contracts import Readout, Runners
from compressor.errors import ModelError, OutputError
from compressor.models import Model

log = logging.getLogger(__name__)
FORMAT = 1
NEAR_TIE = 4.0
"""Two logits nearer than this many rounding steps of the larger one count as a near tie."""
LOGITS_AT_ONCE = 1 << 24
"""Logits that one batch may give when the batch size is chosen automatically.

A constant, not a share of the memory budget: rounding depends on the shape of a batch, and so the base's tokens do.
"""
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}
"""Tokens of such a batch: on a CPU activations should stay in its caches, a GPU wants large products."""


@dataclass
class Reference:
    """Base continuations `tokens` `[sequence, prefix + continuation]`, a fixed point of the base's scoring pass.

    `near_ties` counts positions at which the base itself hardly decides, `mended` tokens that step-by-step generation
    had chosen differently, `noise_floor` is the mean FDT(F, F), which is M unless no fixed point was found. Batches are
    part of the reference: low-precision kernels may round differently in another shape.
    """

    tokens: Tensor
    prefix_tokens: int
    batch: int
    near_ties: int = 0
    mended: int = 0
    noise_floor: float = 0.0
    hidden: Tensor | None = field(default=None, repr=False)
    logits: Tensor | None = field(default=None, repr=False)
    runners: dict[tuple[int, int], Runners] = field(default_factory=dict, repr=False)

    @property
    def continuation_tokens(self) -> int:
        return self.tokens.shape[1] - self.prefix_tokens

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Rows of `tokens` with the index of the first, in the shape in which they are always scored.

        `start` and `stop` choose sequences; only a border inside a batch makes another shape.
        """
        stop = len(self.tokens) if stop is None else min(stop, len(self.tokens))
        while start < stop:
            after = min(stop, (start // self.batch + 1) * self.batch)
            yield start, self.tokens[start:after]
            start = after

    def base_readout(self, start: int, count: int, model: Model) -> Readout:
        """What the base says on `count` sequences; exact, recomputed by the LM head from what entered it."""
        rows = slice(start, start + count)

        def logits() -> Tensor:
            if self.logits is not None:
                return self.logits[rows].to(model.device)
            if self.hidden is None:
                raise ModelError("the base's distribution was not remembered; call remember_distribution first")
            return model.project(self.hidden[rows].to(model.device))

        tokens = self.tokens[rows, self.prefix_tokens :].to(model.device)
        return Readout(logits, tokens, runners=self.runners.setdefault((start, count), {}))

    def remember_distribution(self, model: Model) -> None:
        """Keep what the exact base distribution needs: the LM head's inputs, `[sequence, position, width]` a batch.

        Call it while `model` is the base. Where the LM head is a component, or cannot run on its own, its outputs are
        kept instead.
        """
        keep = self.continuation_tokens
        if not model.head_is_component:
            try:
                self.hidden = torch.cat([model.hidden(batch[:, :-1], keep).cpu() for _, batch in self.batches()])
                return
            except ModelError as error:
                log.info("logits of the base are kept: %s", error)
        self.logits = torch.cat([model.logits(batch[:, :-1], keep).cpu() for _, batch in self.batches()])


def choose_batch(model: Model, length: int, continuation: int, wanted: int | None) -> int:
    """Sequences per forward pass: a power of two that keeps logits and activations small; never from free memory."""
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


def continue_base(model: Model, prefixes: Tensor, continuation: int) -> tuple[Tensor, int, int, float]:
    """One batch: consistent tokens, near ties, mended tokens, and the sum of FDT(F, F) over its sequences.

    Generates step by step, then lets the scoring pass correct the first token on which it disagrees and generates on
    from there, until it agrees with every token.
    """
    prefix, mended = prefixes.shape[1], 0
    tokens = model.decode(prefixes, continuation, lambda logits: logits.argmax(-1)).cpu()
    for _ in range(continuation + 1):
        predicted, near = score_greedily(model, tokens, continuation)
        agrees = predicted == tokens[:, prefix:]
        if agrees.all():
            break
        for row in (~agrees.all(1)).nonzero().flatten().tolist():
            first = prefix + int(agrees[row].long().cumprod(0).sum())
            tokens[row, first] = predicted[row, first - prefix]
            rest = tokens.shape[1] - first - 1
            if rest:
                tokens[row] = model.decode(tokens[row : row + 1, : first + 1], rest, lambda z: z.argmax(-1)).cpu()[0]
            mended += 1
    return tokens, near, mended, float(agrees.long().cumprod(1).sum())


def build_reference(
    model: Model, prefixes: Tensor, continuation: int, batch: int | None = None, cache: Path | None = None
) -> Reference:
    """The reference of the base `model` after `prefixes` `[sequence, prefix]`; from the cache if it is there."""
    size = choose_batch(model, prefixes.shape[1] + continuation, continuation, batch)
    path = None if cache is None else cache / f"{fingerprint(model, prefixes, continuation, size)}.safetensors"
    if path is not None and (found := read_cached(path, size)) is not None:
        return found
    parts = [continue_base(model, part, continuation) for part in prefixes.split(size)]
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
        try:
            write_reference(reference, path)
        except OutputError as error:
            log.warning("the reference is not cached: %s", error)
    return reference


def fingerprint(model: Model, prefixes: Tensor, continuation: int, batch: int) -> str:
    """Hash of all that decides the reference: weights, tokens, settings, precision, device and library versions."""
    import transformers

    facts = [
        FORMAT, model.content_hash(), str(model.dtype), model.device.type, torch.__version__,
        transformers.__version__, continuation, batch, list(prefixes.shape), torch.get_num_threads(),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(prefixes.contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_reference(reference: Reference, path: Path) -> None:
    """Save tokens and counts, whole or not at all; raises OutputError where they cannot be written."""
    metadata = {
        name: str(getattr(reference, name)) for name in ("prefix_tokens", "batch", "near_ties", "mended", "noise_floor")
    }
    write_bytes(path, safetensors.torch.save({"tokens": reference.tokens.contiguous()}, metadata))


def read_cached(path: Path, batch: int) -> Reference | None:
    """The cached reference, or None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = file.metadata()
            return Reference(
                tokens=file.get_tensor("tokens"),
                prefix_tokens=int(facts["prefix_tokens"]),
                batch=batch,
                near_ties=int(facts["near_ties"]),
                mended=int(facts["mended"]),
                noise_floor=float(facts["noise_floor"]),
            )
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        log.warning("the cached reference %s is not readable and is built anew: %s", path.name, error)
        return None


def cache_folder() -> Path:
    """`$COMPRESSOR_CACHE`, else the user's cache folder."""
    given = os.environ.get("COMPRESSOR_CACHE")
    if given:
        return Path(given) / "references"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compressor" / "references"
