"""Checks a saved model: loaded again in a new process, it must give the scored logits.

A check that could not be made is not a failed check: a lack of memory or of disk space says nothing about the model.
"""

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.artifacts.files import parse_json, write_json
from compressor.artifacts.run_files import FILES
from compressor.artifacts.run_folder import claim_files
from compressor.artifacts.run_record import NOT_VERIFIED, VerificationRecord
from compressor.errors import OutputError
from compressor.export.folder import Exported, name_dtype
from compressor.export.reload_script import COMPUTED, LACKS_DISK, LACKS_MEMORY, REFUSED, find_lack
from compressor.models import Model
from compressor.models.checkpoint import shorten_reason
from compressor.resources import read_memory

log = logging.getLogger(__name__)
PREFIXES = 4
SCRIPT = Path(__file__).with_name("reload_script.py")
LOGITS = 1 << 26
"""The largest number of logits that are compared; a large vocabulary has fewer prefixes. It is a constant, because the
record contains the number of prefixes."""
SHARE = 0.25
"""The tolerance as a share of √ε · max|logit|, with the rounding step ε of the dtype: other kernels round otherwise."""
ROOM = 1.2
"""The memory for a second copy of the model, relative to its weights."""
NO_COPY = "there is no memory for a second copy of it"


class NotVerified(Exception):
    """The check could not be made; the message is the reason. It says nothing about the model."""


def verify(
    exported: Exported, model: Model, tokens: Tensor, prefix_tokens: int, trust_remote_code: bool
) -> VerificationRecord:
    """Compare the logits of `exported`, reloaded by transformers alone, with those of the scored `model`.

    The scored model only uses the input transforms that the saved model has. Both run on the first few proof sequences
    `tokens` `[sequence, prefix + continuation]` in the scored dtype. The gap is max|logit − scored logit| over the
    continuations; it need not be 0 for a model that was cut, because a sum of fewer terms rounds otherwise. Raises
    OutputError if it exceeds √ε · max|scored logit| / 4, or if transformers refuses the model; the model is then
    renamed to `model-unverified`.

    If there is no memory or no disk space for the check, or its process is killed, it is made once more with one
    sequence on the CPU. If that is not possible either, the record says `not verified` and why.
    """
    began, width = time.monotonic(), tokens.shape[1]
    device, most = choose_device(model), max(1, min(PREFIXES, LOGITS // (width * model.vocabulary)))
    reason = NO_COPY
    for sequences, place in ((most, device), (1, torch.device("cpu"))) if device is not None else ():
        try:
            record = compare(exported, model, tokens[:sequences].cpu(), prefix_tokens, place, trust_remote_code)
        except NotVerified as error:
            reason = str(error)
            log.info("%s could not be checked on %s: %s", exported.path, place, reason)
        else:
            record.seconds = time.monotonic() - began
            return record
    return VerificationRecord(0, math.nan, math.nan, 0, time.monotonic() - began, NOT_VERIFIED, reason)


def compare(
    exported: Exported,
    model: Model,
    tokens: Tensor,
    prefix_tokens: int,
    device: torch.device,
    trust_remote_code: bool,
) -> VerificationRecord:
    """Compare on all sequences `tokens`, with the saved model on `device`; raises OutputError or NotVerified."""
    request = {
        "dtype": name_dtype(model.dtype),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "trust_remote_code": trust_remote_code,
    }
    reloaded = compute_logits(exported.path, tokens, request)
    try:
        with model.input_transforms.only(exported.treated):
            scored = model.logits(tokens, tokens.shape[1]).cpu()
        if reloaded.shape != scored.shape:
            raise reject(exported.path, f"has logits {list(reloaded.shape)}, not {list(scored.shape)}")
        found, wanted = (logits[:, prefix_tokens - 1 : -1].float() for logits in (reloaded, scored))
        gap = float((found - wanted).abs().max())
    except (MemoryError, RuntimeError) as error:
        if find_lack(error) is None:
            raise
        raise NotVerified(explain_lack(LACKS_MEMORY, error)) from error
    tolerance = SHARE * torch.finfo(model.dtype).eps ** 0.5 * float(wanted.abs().max())
    if not gap <= tolerance:
        raise reject(exported.path, f"differs by {gap:.2g} in a logit, more than the {tolerance:.2g} of rounding")
    leading, before = (count_leading(logits, tokens[:, prefix_tokens:]) for logits in (found, wanted))
    return VerificationRecord(len(tokens), gap, tolerance, int((leading != before).sum()), 0.0)


def count_leading(logits: Tensor, tokens: Tensor) -> Tensor:
    """`[sequence]`: the number of leading `tokens` `[sequence, position]` that are the most likely by the logits."""
    return (logits.argmax(-1) == tokens).long().cumprod(1).sum(1)


def choose_device(model: Model) -> torch.device | None:
    """The device with memory for a second copy of the model: that of the first one, else the CPU, else None."""
    needed = ROOM * model.base_parameters * model.dtype.itemsize
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # memory in this process's cache is not available to others
    for device in dict.fromkeys((model.device, torch.device("cpu"))):
        memory = read_memory(device)
        if memory is None or memory.available - memory.used >= needed:
            return device
    return None


def compute_logits(saved: Path, tokens: Tensor, request: Mapping[str, Any]) -> Tensor:
    """`[sequence, position, vocabulary]`: the logits of the saved model in a new process.

    Raises OutputError if transformers refuses the model, NotVerified if the process fails for another reason. Tokens
    and logits are exchanged in the folder of the model: its disk has room for results, while the system's folder for
    temporary files may be small or in memory. The name is one that a later start in the folder removes.
    """
    # -P: modules of this package must not shadow packages with the same names.
    command = [sys.executable, "-P", str(SCRIPT), str(saved)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    try:
        with tempfile.TemporaryDirectory(
            prefix=".verification.", suffix=".tmp", dir=saved.parent, ignore_cleanup_errors=True
        ) as scratch:
            exchange = Path(scratch)
            write_json(exchange / "request.json", request)
            save_file({"tokens": tokens.contiguous()}, exchange / "tokens.safetensors")
            done = subprocess.run(
                [*command, scratch],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=environment,
                check=False,
            )
            outcome, reason = read_outcome(done.stdout)
            if outcome == COMPUTED:
                return load_file(exchange / "logits.safetensors")["logits"]
    except (OSError, SafetensorError, OutputError, MemoryError) as error:
        lack = find_lack(error)
        failure = explain_lack(lack, error) if lack else f"its check could not be made ({shorten_reason(error)})"
        raise NotVerified(failure) from error
    if outcome == REFUSED:
        raise reject(saved, f"cannot be loaded by transformers ({shorten_reason(reason)})")
    raise NotVerified(explain_lack(outcome, reason) if outcome else explain_end(done.returncode, done.stderr))


def read_outcome(output: str) -> tuple[str, str]:
    """The outcome and its reason, from the last line of what the process printed; empty if it printed none."""
    with suppress(ValueError, KeyError, IndexError, TypeError):
        result = parse_json(output.splitlines()[-1])
        return str(result["outcome"]), str(result["reason"])
    return "", ""


def explain_lack(lack: str, reason: object) -> str:
    """Why a check could not be made, for the user."""
    words = {LACKS_MEMORY: "there was not enough memory for it", LACKS_DISK: "the disk had no room for its logits"}
    return f"{words.get(lack, 'its check could not be made')} ({shorten_reason(reason)})"


def explain_end(status: int, errors: str) -> str:
    """How the process ended that reloads the model, if it said nothing."""
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
        return f"the process that reloads it was killed by {name}{hint}"
    lines = errors.strip().splitlines() or ["without a message"]
    return f"the process that reloads it ended with exit status {status} ({shorten_reason(lines[-1])})"


def reject(saved: Path, what: str) -> OutputError:
    """The error for a saved model that differs from the scored one. The model is renamed and kept for inspection."""
    kept = saved.with_name(f"{saved.stem}-unverified{saved.suffix}")
    try:
        if kept.is_dir():
            shutil.rmtree(kept)
        if kept.name in FILES:
            claim_files(kept.parent, [kept.name])
        os.replace(saved, kept)
    except (OSError, OutputError):
        kept = saved
    return OutputError(
        f"the saved model {what}: it is not the model that was scored; it is left in {kept} for inspection, "
        "export.verify=false saves it without this check"
    )


def describe_verification(title: str, verification: VerificationRecord, is_whole: bool = True) -> str:
    """A sentence on the result for the user. Without `is_whole`, the model lacks input transforms of the scored one."""
    if verification.state == NOT_VERIFIED:
        return f"{title} was not verified: {verification.reason}."
    logits = "the scored logits" if is_whole else "not the scored logits, but those of the scored weights,"
    start = f"{title}, loaded again in a new process, gives {logits} of {verification.prefixes} proof prefixes"
    if verification.gap == 0:
        return f"{start} bit for bit."
    return f"{start} up to {verification.gap:.1g}, within the {verification.tolerance:.1g} of rounding."
