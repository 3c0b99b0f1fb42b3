"""Checks a saved model: loaded again in a new process, it must give the scored logits."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor.artifacts.files import write_json
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


def verify(
    exported: Exported, model: Model, tokens: Tensor, prefix_tokens: int, trust_remote_code: bool
) -> VerificationRecord | None:
    """Compare the logits of `exported`, reloaded by transformers alone, with those of the scored `model`.

    The scored model only uses the input transforms that the saved model has. Both run on the first few proof sequences
    `tokens` `[sequence, prefix + continuation]` in the scored dtype. The gap is max|logit − scored logit| over the
    continuations. Raises OutputError if it exceeds √ε · max|scored logit| / 4, or if the model cannot be loaded; the
    model is then renamed to `model-unverified`. Returns None if there is no memory for a second copy.
    """
    device = choose_device(model)
    if device is None:
        return None
    began, width = time.monotonic(), tokens.shape[1]
    chosen = tokens[: max(1, min(PREFIXES, LOGITS // (width * model.vocabulary)))].cpu()
    request = {
        "dtype": name_dtype(model.dtype),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "trust_remote_code": trust_remote_code,
    }
    reloaded = compute_logits(exported.path, chosen, request)
    with model.input_transforms.only(exported.treated):
        scored = model.logits(chosen, width).cpu()
    if reloaded.shape != scored.shape:
        raise reject(exported.path, f"has logits {list(reloaded.shape)}, not {list(scored.shape)}")
    found, wanted = (logits[:, prefix_tokens - 1 : -1].float() for logits in (reloaded, scored))
    gap = float((found - wanted).abs().max())
    tolerance = SHARE * torch.finfo(model.dtype).eps ** 0.5 * float(wanted.abs().max())
    if not gap <= tolerance:
        raise reject(exported.path, f"differs by {gap:.2g} in a logit, more than the {tolerance:.2g} of rounding")
    leading, before = (count_leading(logits, chosen[:, prefix_tokens:]) for logits in (found, wanted))
    return VerificationRecord(len(chosen), gap, tolerance, int((leading != before).sum()), time.monotonic() - began)


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
    """`[sequence, position, vocabulary]`: the logits of the saved model in a new process; raises OutputError."""
    # -P: modules of this package must not shadow packages with the same names.
    command = [sys.executable, "-P", str(SCRIPT), str(saved)]
    with tempfile.TemporaryDirectory() as scratch:
        exchange = Path(scratch)
        write_json(exchange / "request.json", request)
        save_file({"tokens": tokens.cpu().contiguous()}, exchange / "tokens.safetensors")
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, scratch], capture_output=True, text=True, env=environment, check=False)
        try:
            if done.returncode == 0:
                return load_file(exchange / "logits.safetensors")["logits"]
        except (OSError, SafetensorError) as error:
            raise reject(saved, f"gives no logits ({shorten_reason(error)})") from error
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    raise reject(saved, f"cannot be loaded by transformers ({shorten_reason(lines[-1])})")


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


def tell(title: str, verification: VerificationRecord | None, is_whole: bool = True) -> str:
    """A sentence on the result for the user. Without `is_whole`, the model lacks input transforms of the scored one."""
    if verification is None:
        return f"{title} was not checked: there is no memory for a second copy of it."
    logits = "the scored logits" if is_whole else "not the scored logits, but those of the scored weights,"
    prefixes = f"{verification.prefixes} proof prefixes"
    start = f"{title}, loaded again in a new process, gives {logits} of {prefixes}"
    if verification.gap == 0:
        return f"{start} bit for bit."
    return f"{start} up to {verification.gap:.1g}, within the {verification.tolerance:.1g} of rounding."
