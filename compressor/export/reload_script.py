"""Computes the logits of a saved model with transformers alone; verification.py runs this script in a new process.

Its arguments are the model (a folder or a GGUF file) and a folder with request.json and tokens.safetensors, to which it
writes logits.safetensors. The last line of its output is a JSON object with the `outcome` and its `reason`. A process
that was killed prints no such line.
"""

import errno
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from compressor.artifacts.files import NO_ROOM, find_number
from compressor.errors import list_causes
from compressor.resources import lacks_memory

COMPUTED, REFUSED, LACKS_MEMORY, LACKS_DISK, FAILED = "computed", "refused", "lacks memory", "lacks disk", "failed"
"""Outcomes. Only the first two are statements about the model: logits are there, or it cannot be loaded."""


def main(saved: Path, exchange: Path) -> None:
    """Write `logits` `[sequence, position, vocabulary]` of the `tokens` `[sequence, position]`; print the outcome."""
    outcome, reason, otherwise = COMPUTED, "", FAILED
    try:
        request = json.loads((exchange / "request.json").read_text(encoding="utf-8"))
        tokens = load_file(exchange / "tokens.safetensors")["tokens"].to(request["device"])
        torch.set_num_threads(request["threads"])
        otherwise = REFUSED
        logits = compute_logits(saved, tokens, request["dtype"], request["trust_remote_code"])
        otherwise = FAILED
        save_file({"logits": logits}, exchange / "logits.safetensors")
    except Exception as error:  # transformers, tokenizers and remote code raise what they like
        outcome = find_lack(error) or otherwise
        reason = f"{type(error).__name__}: {error}"
    print("\n" + json.dumps({"outcome": outcome, "reason": reason}), flush=True)  # noqa: T201 - read by the parent


def compute_logits(saved: Path, tokens: Tensor, dtype: str, trust_remote_code: bool) -> Tensor:
    """`[sequence, position, vocabulary]` on the CPU, computed on the device of the tokens."""
    folder, options = (saved.parent, {"gguf_file": saved.name}) if saved.is_file() else (saved, {})
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code, local_files_only=True, **options
    )
    network.to(tokens.device).eval()
    with torch.no_grad():
        logits: Tensor = network(input_ids=tokens, use_cache=False).logits
    return logits.cpu().contiguous()


def find_lack(error: BaseException) -> str | None:
    """`LACKS_MEMORY` or `LACKS_DISK` if an error, or one that led to it, says so; None for any other error."""
    for one in list_causes(error):
        number = find_number(one)
        if number in NO_ROOM:
            return LACKS_DISK
        if number == errno.ENOMEM or lacks_memory(one):
            return LACKS_MEMORY
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
