"""What `make run` costs: seconds of each phase and peak memory of the demo, in a process of its own.

python -m tests.benchmarks demo [--repeat 3] [OVERRIDES …]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def run_demo(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One run in a new process: wall-clock seconds, phases from its report, peak resident memory."""
    command = [sys.executable, "-m", "compressor.commands.entry", "run", f"hydra.run.dir={folder}", *overrides]
    cache = folder.with_name(f"{folder.name}-cache")
    environment = os.environ | {"COMPRESSOR_CACHE": str(cache), "WANDB_MODE": "offline"}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    report = json.loads((folder / "report.json").read_text())
    return {
        "seconds": time.monotonic() - began,
        **{f"{name} seconds": seconds for name, seconds in report["phases"].items()},
        "peak MiB": usage.ru_maxrss / 1024,
    }


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    options, overrides = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = [run_demo(Path(folder) / str(index), overrides) for index in range(options.repeat)]
    yield {name: statistics.median(row[name] for row in rows) for name in rows[0]}
