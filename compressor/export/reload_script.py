"""Computes the logits of a saved model with transformers alone; verification.py runs this script in a new process.

Its arguments are the model (a folder or a GGUF file) and a folder with request.json and tokens.safetensors, to which it
writes logits.safetensors, or failure.json: the reason, and whether it is one `of_model` or of this machine.
"""

import errno
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FULL = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SCARCE = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "no space left",
    "quota exceeded",
    "file too large",
    "bad_alloc",
    "start new thread",
)
"""Texts of errors that torch and safetensors raise without an error number."""


def is_of_model(error: BaseException | None) -> bool:
    """False where memory or disk space ran out, for this error or one that led to it."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or getattr(error, "errno", None) in FULL:
            return False
        if any(words in str(error).lower() for words in SCARCE):
            return False
        error = error.__cause__ or error.__context__
    return True


def main(saved: Path, exchange: Path) -> None:
    """Write `logits` `[sequence, position, vocabulary]` of the `tokens` `[sequence, position]`."""
    request = json.loads((exchange / "request.json").read_text(encoding="utf-8"))
    tokens = load_file(exchange / "tokens.safetensors")["tokens"]
    torch.set_num_threads(request["threads"])
    folder, options = (saved.parent, {"gguf_file": saved.name}) if saved.is_file() else (saved, {})
    network = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, request["dtype"]),
        trust_remote_code=request["trust_remote_code"],
        local_files_only=True,
        **options,
    )
    network.to(request["device"]).eval()
    with torch.no_grad():
        logits = network(input_ids=tokens.to(request["device"]), use_cache=False).logits
    save_file({"logits": logits.cpu().contiguous()}, exchange / "logits.safetensors")


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    try:
        main(Path(sys.argv[1]), folder)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        (folder / "failure.json").write_text(json.dumps({"reason": reason, "of_model": is_of_model(error)}))
        raise
