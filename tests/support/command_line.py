"""The command line in a process of its own: in a fresh interpreter, or in a copy of one that has imported everything.

Most of a short command is imports of some seconds. `call_command` forks its processes from one that has done nothing
but import: what a command leaves behind is gone with its process, as it is with a fresh interpreter.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = """
import json, os, signal, sys
import hydra, torch, transformers
from transformers.models.llama import modeling_llama
import compressor.commands.main, compressor.commands.run, compressor.commands.forecast
from compressor.plugins import installed
installed()

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            file = os.open(request[name], os.O_WRONLY)
            os.dup2(file, descriptor)
        sys.stdin = open(os.devnull)
        sys.argv = request["arguments"]
        try:
            compressor.commands.main.main()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@functools.cache
def start_server() -> subprocess.Popen[str]:
    """One for all tests of this process; it ends when its standard input is closed, so with the tests."""
    return subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def call_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `compressor` in `folder`, in a copy of a process that has imported everything."""
    server = start_server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch, name) for name in ("stdout", "stderr")}
        for file in files.values():
            file.touch()
        line = ["compressor", *arguments]
        said = {name: str(file) for name, file in files.items()}
        request = {"folder": str(folder), "arguments": line, "environment": os.environ | environment, **said}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(line, status, *(file.read_text(encoding="utf-8") for file in files.values()))


def call_fresh_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `compressor` in `folder`, in a fresh interpreter."""
    command = [sys.executable, "-m", "compressor.commands.main", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}, check=False
    )
