"""A run that is killed just before or just after its n-th operation on files."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.artifacts import answers
from compressor.errors import OutputError
from compressor.plugins import installed
from compressor.settings import ComponentSettings, DataSettings, ModelSettings, Settings
from tests.support.runs import make_settings, run
from tests.support.warm_processes import ROOT, run_project

OPERATIONS = ("replace", "rename", "unlink", "fsync", "mkdir", "rmdir")
KILLED = 99
"""The exit status of a process that was killed so."""
SCHEDULES = {"uniform": {"targets": [0.3, 0.5]}, "fdt_allocation": {"targets": [0.3]}}
NEVER = -1
CODE = "import sys; from tests.support.interrupted_writes import work; work(*sys.argv[1:])"


def run_until(moment: int, folder: Path, base: Path, schedule: str) -> tuple[int, int]:
    """A tiny run in a process of its own, killed at a moment. Returns the exit status and how many moments there were.

    Operation k on a file has the moments 2k (before) and 2k + 1 (after); `NEVER` lets the run end. A folder that holds
    a finished run is left as it is. (The process is not forked from this one: its threads would be missing.)
    """
    counted = folder.with_name(f"{folder.name}.moments")
    command = [sys.executable, "-c", CODE, str(moment), str(folder), str(base), schedule, str(counted)]
    done = run_project(command, ROOT, os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode in (0, KILLED), done.stderr
    return done.returncode, int(counted.read_text()) if done.returncode == 0 else moment


def work(moment: str, folder: str, base: str, schedule: str, counted: str) -> None:
    """What the process does."""
    answers.BLOCK_SECONDS = 0.0  # every answer is a block of its own
    settings, count = make(Path(base), schedule), kill_at(int(moment))
    status = 1
    try:
        run(Path(folder), settings)
        status = 0
    except OutputError as error:
        status = 0 if "already holds a finished run" in str(error) else 1
    except BaseException:
        traceback.print_exc()
    if status == 0:
        Path(counted).write_text(str(count()))
    sys.stderr.flush()
    os._exit(status)


def make(base: Path, schedule: str) -> Settings:
    """Settings of a run that takes a moment."""
    chosen = installed().schedules[schedule](**SCHEDULES[schedule])
    parts = ComponentSettings(include=[r"layers\.0\.self_attn"])
    few = DataSettings(prefixes=2, proof_prefixes=2, prefix_tokens=4, continuation_tokens=4)
    settings = make_settings(chosen, model=ModelSettings(path=str(base)), components=parts, data=few)
    settings.metric = {name: settings.metric[name] for name in ("fdtm",)}
    return settings


def kill_at(moment: int) -> Callable[[], int]:
    """Count the operations of this process on files from now on, and end it at a moment; returns the counter."""
    moments = 0

    def pass_moment() -> None:
        nonlocal moments
        if moments == moment:
            os._exit(KILLED)
        moments += 1

    def counted(
        function: Callable[..., Any], counts: Callable[..., bool] = lambda *_, **__: True
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever the function takes
            if not counts(*arguments, **options):
                return function(*arguments, **options)
            pass_moment()
            result = function(*arguments, **options)
            pass_moment()
            return result

        return call

    def writes(file: object, mode: str = "r", *_: object, **__: object) -> bool:
        return any(letter in mode for letter in "wax+") and not isinstance(file, int)

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    os.open = counted(os.open, lambda _, flags, *__, **___: flags & os.O_CREAT)  # type: ignore[assignment]
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
    io.open = builtins.open = counted(builtins.open, writes)  # type: ignore[assignment]
    return lambda: moments
