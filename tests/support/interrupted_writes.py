"""A process that is killed just before or just after its n-th operation on files."""

from __future__ import annotations

import builtins
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("replace", "rename", "unlink", "fsync", "mkdir", "rmdir")
KILLED = 99
"""The exit status of a process that was killed so."""


def always(*_: object, **__: object) -> bool:
    return True


def count_operations(work: Callable[[], object], kill_at: int | None = None, log: Path | None = None) -> int:
    """Run `work` in a forked process. Operation k has the moments 2k (before) and 2k + 1 (after).

    The process ends at moment `kill_at`, without any clean-up. Otherwise the number of moments goes to `log`. Returns
    the exit status: KILLED, 0, or 1 for an exception.
    """
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    moments = 0

    def pass_moment() -> None:
        nonlocal moments
        if moments == kill_at:
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
    status = 1
    try:
        work()
        if log is not None:
            log.write_text(str(moments))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
