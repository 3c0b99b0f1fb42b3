"""What was scored is what is shipped: the saved model, loaded again in a new process, must give the scored logits."""

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
"""At most so many are compared: fewer prefixes of a large vocabulary. A constant, because the record says how many."""
SHARE = 0.25
"""Of √ε · max|logit|, for the rounding step ε of the dtype: what other kernels may change by rounding."""
ROOM = 1.2
"""Memory that a second copy of the model needs, in sizes of its weights."""


def verify(
    exported: Exported, model: Model, tokens: Tensor, prefix_tokens: int, trust_remote_code: bool
) -> VerificationRecord | None:
    """Compare the logits of `exported`, reloaded by transformers alone, with those of the scored `model`.

    Of the scored model's treated inputs only those count that the saved one has. Both read the first few of the proof
    sequences `tokens` `[sequence, prefix + continuation]` in the scored dtype. The gap is max|logit − scored logit| at
    positions of continuations. Raises OutputError where it exceeds √ε · max|scored logit| / 4, or where the model
    cannot be loaded; it is then `model-unverified`. None where there is no memory for a second copy.
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
    said = ask_saved(exported.path, chosen, request)
    with model.input_transforms.only(exported.treated):
        scored = model.logits(chosen, width).cpu()
    if said.shape != scored.shape:
        raise reject(exported.path, f"has logits {list(said.shape)}, not {list(scored.shape)}")
    found, wanted = (logits[:, prefix_tokens - 1 : -1].float() for logits in (said, scored))
    gap = float((found - wanted).abs().max())
    tolerance = SHARE * torch.finfo(model.dtype).eps ** 0.5 * float(wanted.abs().max())
    if not gap <= tolerance:
        raise reject(exported.path, f"is off by {gap:.2g} in a logit, more than the {tolerance:.2g} of rounding")
    leading, before = (count_leading(logits, chosen[:, prefix_tokens:]) for logits in (found, wanted))
    return VerificationRecord(len(chosen), gap, tolerance, int((leading != before).sum()), time.monotonic() - began)


def count_leading(logits: Tensor, tokens: Tensor) -> Tensor:
    """`[sequence]`: leading tokens `[sequence, position]` that are the most likely ones of the logits."""
    return (logits.argmax(-1) == tokens).long().cumprod(1).sum(1)


def choose_device(model: Model) -> torch.device | None:
    """Where a second copy of the model has room: beside the first one, else on the CPU, else nowhere."""
    needed = ROOM * model.base_parameters * model.dtype.itemsize
    if model.device.type == "cuda":
        torch.cuda.empty_cache()  # what this process only holds in store is not there for another one
    for device in dict.fromkeys((model.device, torch.device("cpu"))):
        memory = read_memory(device)
        if memory is None or memory.available - memory.used >= needed:
            return device
    return None


def ask_saved(saved: Path, tokens: Tensor, request: Mapping[str, Any]) -> Tensor:
    """`[sequence, position, vocabulary]`: the logits that a new process gets of it; raises OutputError."""
    # -P: modules of this package must not stand in for packages of the same name.
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
    raise reject(saved, f"cannot be loaded by transformers ({shorten_reason(ValueError(lines[-1]))})")


def reject(saved: Path, what: str) -> OutputError:
    """What to raise for a saved model that is not what was scored; it gets another name, to be looked at."""
    kept = saved.with_name(f"{saved.stem}-unverified{saved.suffix}")
    try:
        if kept.is_dir():
            shutil.rmtree(kept)
        os.replace(saved, kept)
    except OSError:
        kept = saved
    return OutputError(
        f"the saved model {what}: it is not the model that was scored; it is left in {kept} to be looked at, "
        "export.verify=false keeps it as it is"
    )


def tell(title: str, verification: VerificationRecord | None, is_whole: bool = True) -> str:
    """What came out for what is called so, for a person. Not `is_whole`, it lacks treated inputs of the scored one."""
    if verification is None:
        return f"{title} was not checked: there is no memory for a second copy of it."
    logits = "the scored logits" if is_whole else "not the scored logits, but those of the scored weights,"
    prefixes = f"{verification.prefixes} proof prefixes"
    start = f"{title}, loaded again in a new process, gives {logits} of {prefixes}"
    if verification.gap == 0:
        return f"{start} bit for bit."
    return f"{start} up to {verification.gap:.1g}, within the {verification.tolerance:.1g} of rounding."
