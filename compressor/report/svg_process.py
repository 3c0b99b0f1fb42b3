"""Vega-Lite's converter in a process of its own, where its JavaScript engine may fail.

Where the engine finds no memory or no open files it ends its process, which would end a run after its search.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

PROGRAM = """
import json, sys
from vl_convert import vegalite_to_svg
for line in sys.stdin:
    print(json.dumps(vegalite_to_svg(json.loads(line))), flush=True)
"""
SECONDS = 60
"""A picture takes milliseconds, the first one a second."""


class NotDrawn(Exception):
    """A picture could not be drawn; the message is the reason."""


class SvgProcess:
    """Converts one specification after the other in one process, which is started again where it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        atexit.register(self._end)

    def convert(self, specification: dict[str, Any]) -> str:
        """The SVG of a specification of Vega-Lite; raises NotDrawn if the process cannot be started, ends or hangs."""
        with self._lock:
            try:
                process = self._start()
                assert process.stdin is not None and process.stdout is not None, "both are pipes"
                process.stdin.write(f"{json.dumps(specification)}\n")
                process.stdin.flush()
                readable, _, _ = select.select([process.stdout], [], [], SECONDS)
                answer = process.stdout.readline() if readable else None
                if answer:
                    return str(json.loads(answer))
            except (OSError, ValueError) as error:
                self._end()
                raise NotDrawn(str(error)) from error
            except BaseException:  # a signal: what is asked next must not be answered with this picture
                self._end()
                raise
            status = self._end()
            if answer is None:
                raise NotDrawn(f"the process that draws it did not answer for {SECONDS} s")
            raise NotDrawn(f"the process that draws it ended (status {status}), as without memory or open files")

    def _start(self) -> "subprocess.Popen[str]":
        """The process; a new one if there is none, or if it belongs to the process from which this one was forked."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # signals from a terminal are for the run, which draws on
            )
            self._owner = os.getpid()
        return self._process

    def _end(self) -> int | None:
        """End the process; returns its exit status, if it was started."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                assert pipe is not None, "both are pipes"
                pipe.close()
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
