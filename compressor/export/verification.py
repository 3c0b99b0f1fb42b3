"""Checks a saved model: loaded again in a new process, it must give the scored logits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.artifacts.run_record import VerificationRecord
from compressor.errors import OutputError
from compressor.export.folder import Exported, name_dtype
from compressor.models import Model
from compressor.models.checkpoint import shorten_reason
from compressor.resources import read_memory

PREFIXES = 4
SCRIPT = Path(__file__).with_name("reload_script.py")
LOGITS = 1 << 26
"""The largest number of logits that are compared; a large vocabulary has fewer prefixes. It is a constant, because the
record contains the number of prefixes."""
SHARE = 0.25
"""The tolerance as a share of √ε · max|logit|, with the rounding step ε of the dtype: other kernels round otherwise."""
ROOM = 1.2
"""The memory for a second copy of the model, relative to its weights."""


class CannotVerify(Exception):
    """The check could not be made, for a reason that says nothing about the model."""


def verify(
    exported: Exported, model: Model, tokens: Tensor, prefix_tokens: int, trust_remote_code: bool
) -> VerificationRecord:
    """Compare the logits of `exported`, reloaded by transformers alone, with those of the scored `model`.

    The scored model only uses the input transforms that the saved model has. Both run on the first few proof sequences
    `tokens` `[sequence, prefix + continuation]` in the scored dtype. The gap is max|logit − scored logit| over the
    continuations. Raises OutputError if it exceeds √ε · max|scored logit| / 4, or if the model cannot be loaded; the
    model is then renamed to `model-unverified`. A check that could not be made, for lack of memory or of disk space or
    because its process was killed, is tried once more, on the CPU with one sequence; then the record has a `failure`.
    """
    began, width = time.monotonic(), tokens.shape[1]
    count = max(1, min(PREFIXES, LOGITS // (width * model.vocabulary)))
    failure = "there is no memory for a second copy of it"
    for device, sequences in list_attempts(model, count):
        try:
            found = compare(exported, model, tokens[:sequences].cpu(), prefix_tokens, device, trust_remote_code)
        except CannotVerify as error:
            failure = str(error)
        else:
            return replace(found, seconds=time.monotonic() - began)
    return VerificationRecord(0, 0.0, 0.0, 0, time.monotonic() - began, failure)


def list_attempts(model: Model, count: int) -> Iterator[tuple[torch.device, int]]:
    """The device and the number of sequences of each attempt; there is no attempt without memory for a second copy."""
    if (device := choose_device(model)) is not None:
        yield device, count
        yield torch.device("cpu"), 1


def compare(
    exported: Exported, model: Model, chosen: Tensor, prefix_tokens: int, device: torch.device, trust_remote_code: bool
) -> VerificationRecord:
    """One attempt, on the sequences `chosen`; raises CannotVerify, or OutputError as `verify`."""
    request = {
        "dtype": name_dtype(model.dtype),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "trust_remote_code": trust_remote_code,
    }
    reloaded = compute_logits(exported.path, chosen, request)
    try:
        with model.input_transforms.only(exported.treated):
            scored = model.logits(chosen, chosen.shape[1]).cpu()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CannotVerify("there is no memory for the scored logits") from error
    if reloaded.shape != scored.shape:
        raise reject(exported.path, f"has logits {list(reloaded.shape)}, not {list(scored.shape)}")
    found, wanted = (logits[:, prefix_tokens - 1 : -1].float() for logits in (reloaded, scored))
    gap = float((found - wanted).abs().max())
    tolerance = SHARE * torch.finfo(model.dtype).eps ** 0.5 * float(wanted.abs().max())
    if not gap <= tolerance:
        raise reject(exported.path, f"differs by {gap:.2g} in a logit, more than the {tolerance:.2g} of rounding")
    leading, before = (count_leading(logits, chosen[:, prefix_tokens:]) for logits in (found, wanted))
    return VerificationRecord(len(chosen), gap, tolerance, int((leading != before).sum()), 0.0)


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

    Raises OutputError if transformers refuses the model, CannotVerify if the process failed for another reason. Tokens
    and logits are exchanged beside the model: its disk has room, while the system's temporary folder may be memory.
    """
    # -P: modules of this package must not shadow packages with the same names.
    command = [sys.executable, "-P", str(SCRIPT), str(saved)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    try:
        with tempfile.TemporaryDirectory(prefix=".logits.", suffix=".tmp", dir=saved.parent) as scratch:
            exchange = Path(scratch)
            (exchange / "request.json").write_text(json.dumps(request))
            save_file({"tokens": tokens.cpu().contiguous()}, exchange / "tokens.safetensors")
            done = subprocess.run([*command, scratch], capture_output=True, text=True, env=environment, check=False)
            if done.returncode == 0:
                return load_file(exchange / "logits.safetensors")["logits"]
            report = exchange / "failure.json"
            failure = json.loads(report.read_text()) if report.is_file() else None
    except (OSError, SafetensorError, ValueError) as error:
        raise CannotVerify(shorten_reason(error)) from error
    if failure is not None:
        reason = shorten_reason(failure["reason"])
        if failure["of_model"]:
            raise reject(saved, f"cannot be loaded by transformers ({reason})")
        raise CannotVerify(reason)
    if done.returncode < 0:
        raise CannotVerify(f"the process that loads it was ended by {signal.Signals(-done.returncode).name}")
    lines = done.stderr.strip().splitlines() or ["no message"]
    raise CannotVerify(f"the process that loads it ended with status {done.returncode}: {shorten_reason(lines[-1])}")


def reject(saved: Path, what: str) -> OutputError:
    """The error for a saved model that differs from the scored one. The model is renamed and kept for inspection."""
    kept = saved.with_name(f"{saved.stem}-unverified{saved.suffix}")
    try:
        if kept.is_dir():
            shutil.rmtree(kept)
        os.replace(saved, kept)
    except OSError:
        kept = saved
    return OutputError(
        f"the saved model {what}: it is not the model that was scored; it is left in {kept} for inspection, "
        "export.verify=false saves it without this check"
    )


def describe_verification(title: str, found: VerificationRecord, is_whole: bool = True) -> str:
    """A sentence on the result for the user. Without `is_whole`, the model lacks input transforms of the scored one."""
    if found.failure is not None:
        return f"{title} was not verified: {found.failure}. It is saved all the same."
    logits = "the scored logits" if is_whole else "not the scored logits, but those of the scored weights,"
    start = f"{title}, loaded again in a new process, gives {logits} of {found.prefixes} proof prefixes"
    if found.gap == 0:
        return f"{start} bit for bit."
    return f"{start} up to {found.gap:.1g}, within the {found.tolerance:.1g} of rounding."
