"""Computes the logits of a saved model with transformers alone; verification.py runs this script in a new process.

Its arguments are the model (a folder or a GGUF file) and a folder with request.json and tokens.safetensors, to which it
writes logits.safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
