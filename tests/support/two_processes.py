"""Starts two processes that train together, without a launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_two(folder: Path, *arguments: str) -> Sequence[subprocess.Popen[str]]:
    """Two Python processes with these arguments, as `accelerate launch` and `torchrun` start them on a CPU."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    together |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, **together, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]


def run_two(folder: Path, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """The same, when both have ended."""
    started = start_two(folder, *arguments)
    ended = []
    for process in started:
        output, errors = process.communicate(timeout=300)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, output, errors))
    return ended
