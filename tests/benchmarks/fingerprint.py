"""Hashes of what three recipes leave: plan, scores, reference and weights of `make run`, int8_tiny and mixed_tiny.

A change that must not alter any result is checked by running this before and after it, on the same machine:

python -m tests.benchmarks fingerprint --file before.json      # the first time the hashes are written
python -m tests.benchmarks fingerprint --file before.json      # from then on they are compared; exit 1 if one differs
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECIPES = {"make run": [], "int8_tiny": ["experiment=int8_tiny"], "mixed_tiny": ["experiment=mixed_tiny"]}
FILES = ("plan.json", "sequences.jsonl", "model/model.safetensors")


def hash_bytes(data: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def hash_scores(report: dict[str, Any]) -> str:
    """The scores of the base, of every round and of the result, without times and versions."""
    rounds = [[step["target"], step["amount"], step["scores"], step["trials"]] for step in report["rounds"]]
    kept = [rounds, report["base"], report["final"], report["components"], report["noise_floor"]]
    return hash_bytes(json.dumps(kept, sort_keys=True).encode())


def hash_reference(path: Path) -> str:
    """The tokens of the reference; its metadata may say more."""
    from safetensors.torch import load_file

    return hash_bytes(load_file(path)["tokens"].numpy().tobytes())


def take(folder: Path, overrides: list[str], cache: Path) -> dict[str, str]:
    """Run one recipe in a new process; hashes by what is hashed."""
    command = [sys.executable, "-c", "from importlib.metadata import entry_points as e; "
               "e(group='console_scripts')['compressor'].load()()",
               "run", f"hydra.run.dir={folder}", *overrides]  # fmt: skip
    environment = os.environ | {"COMPRESSOR_CACHE": str(cache), "WANDB_MODE": "offline"}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    found = {name: hash_bytes((folder / name).read_bytes()) for name in FILES}
    found["reference"] = hash_reference(folder / "reference.safetensors")
    found["scores"] = hash_scores(json.loads((folder / "report.json").read_text()))
    return found


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="written where it does not exist, else compared with")
    options = parser.parse_args(arguments)
    before = json.loads(options.file.read_text()) if options.file and options.file.exists() else None
    now: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (recipe, overrides) in enumerate(RECIPES.items()):
            cache = Path(folder) / f"cache-{number}"  # empty, or estimates would be answers of an earlier run
            now[recipe] = take(Path(folder) / str(number), overrides, cache)
            yield {"recipe": recipe, **now[recipe]}
    if before is not None:
        different = [
            f"{recipe}: {name}" for recipe in now for name in now[recipe] if now[recipe][name] != before[recipe][name]
        ]
        yield {"recipe": "compared with the file", "different": ", ".join(different) or "nothing"}
        if different:
            raise SystemExit(1)
    elif options.file:
        options.file.write_text(json.dumps(now, indent=1) + "\n")
