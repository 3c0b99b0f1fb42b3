"""Python processes without the seconds that imports take: forked from one that has done nothing but import.

What a process leaves behind is gone with it, as it is with a fresh interpreter. `run_plain` runs Python where torch and
transformers are imported and nothing of this project; `run_project` where the commands and plugins of this project are.
Tests of how a fresh interpreter begins must start one.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]


@functools.cache
def start_server() -> tuple[str, str, subprocess.Popen[str]]:
    """The sockets of both stages and the server, one for all tests of this process; it ends when they do."""
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    plain, project = f"{folder}/plain", f"{folder}/project"
    command = [sys.executable, "-m", "tests.support.warm_server", plain, project]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "listening\n"
    return plain, project, server


def run_plain(
    command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `[sys.executable, …]` where transformers are imported, and nothing of this project."""
    return _ask(start_server()[0], command, folder, environment)


def run_project(
    command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `[sys.executable, …]` where this project is imported. Models that it saves are reloaded by `run_plain`."""
    return _ask(start_server()[1], command, folder, environment)


def make_subprocess(path: str | None = None) -> SimpleNamespace:
    """Takes the place of the module `subprocess` where a saved model is reloaded: as `run_plain`, at its socket."""

    def run(command: Sequence[str], *, env: Mapping[str, str], **always: object) -> subprocess.CompletedProcess[str]:
        assert always == {"capture_output": True, "encoding": "utf-8", "errors": "replace", "check": False}
        return _ask(path or start_server()[0], command, None, env)

    return SimpleNamespace(run=run)


def _ask(
    path: str, command: Sequence[str], folder: Path | None, environment: Mapping[str, str] | None
) -> subprocess.CompletedProcess[str]:
    assert command[0] == sys.executable
    with tempfile.TemporaryDirectory() as scratch, socket.socket(socket.AF_UNIX) as connection:
        files = {name: Path(scratch, name) for name in ("stdout", "stderr")}
        for file in files.values():
            file.touch()
        request = {
            "arguments": command[1:],
            "folder": str(folder or Path.cwd()),
            "environment": dict(os.environ if environment is None else environment),
            **{name: str(file) for name, file in files.items()},
        }
        connection.connect(path)
        connection.sendall(f"{json.dumps(request)}\n".encode())
        answer = connection.makefile().readline()
        assert answer, "the process that has imported everything has ended"
        said = (file.read_text(encoding="utf-8") for file in files.values())
        return subprocess.CompletedProcess(list(command), int(answer), *said)
