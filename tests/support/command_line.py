"""The command line in a process of its own: a fresh interpreter, or a copy of one that has imported everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.warm_processes import run_project

MAIN = "import sys; from compressor.commands.entry import main; sys.argv[0] = 'compressor'; main()"


def call_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `compressor` in `folder`, in a copy of a process that has imported everything."""
    return run_project([sys.executable, "-c", MAIN, *arguments], folder, os.environ | environment)


def call_fresh_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `compressor` in `folder`, in a fresh interpreter."""
    command = [sys.executable, "-m", "compressor.commands.entry", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}, check=False
    )
