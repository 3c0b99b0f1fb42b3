"""SIGINT, SIGTERM and SIGHUP: the first lets the current block of work end, the second ends the process at once.

A block that takes longer than `GRACE` is given up: whoever sends SIGTERM usually sends SIGKILL half a minute later.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from compressor.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 20.0
"""Seconds that a block of work has to end after the first signal."""
MOMENT = 0.01
"""Seconds until a signal is raised again that came where no error can be raised."""
BASE_STATUS = 128
"""The exit status of a process that a signal ended is this and the number of the signal."""


class Stopped(Interrupted):
    """A signal asked to stop. It is no Exception, so that nothing handles it as a failure."""

    def __init__(self, signum: int, folder: Path | None = None) -> None:
        super().__init__(signum)
        self.signum = signum
        self.folder = folder
        """The folder of a run that can go on from here."""

    def __str__(self) -> str:
        goes_on = f"; go on with: compressor resume {shlex.quote(str(self.folder))}" if self.folder else ""
        return f"stopped by {signal.Signals(self.signum).name}{goes_on}"

    @property
    def exit_status(self) -> int:
        return BASE_STATUS + self.signum


def find_stopped(error: BaseException | None) -> Stopped | None:
    """The Stopped that led to an error, where other code turned it into one of its own; None if there is none."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


class Stop:
    """Whether a signal has come. While `deferred`, a signal is only noted, and `check` raises it."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.folder: Path | None = None
        """That of `compressor resume`, which can be given again whenever the signal comes."""
        self._defers = self._is_idle = False
        self._status: int | None = None

    @property
    def is_requested(self) -> bool:
        return self.signum is not None

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.signum is not None:
            raise Stopped(self.signum, self.folder)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, whoever calls `check` decides where to stop after the first signal, unless `GRACE` seconds go by."""
        self._defers = True
        try:
            yield
        finally:
            self._defers = False
            if self.signum is not None:  # else the timer is not ours
                signal.setitimer(signal.ITIMER_REAL, 0)
        self.check()

    @contextmanager
    def at_once(self, is_idle: bool = True) -> Iterator[None]:
        """Inside, the first signal ends the process, because nothing is lost: for imports, where no error is safe.

        Where not `is_idle`, it raises Stopped again.
        """
        before, self._is_idle = self._is_idle, is_idle
        try:
            yield
        finally:
            self._is_idle = before

    def finish(self, status: int) -> None:
        """From now on a signal ends the process with this status: the work is done, and its output was written."""
        self._status = status

    def listen(self) -> dict[signal.Signals, Any]:
        """Handle the signals; returns the handlers of before."""
        # A process that was started by nohup ignores SIGHUP, and goes on doing so.
        chosen = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
        before: dict[signal.Signals, Any] = {signum: signal.signal(signum, self._receive) for signum in chosen}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda signum, frame: self.check())
        return before

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals; afterwards they are handled as before."""
        before, hook = self.listen(), sys.unraisablehook
        sys.unraisablehook = lambda found: self._raise_again(found) or hook(found)
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._status is not None:
            os._exit(self._status)
        if self.signum is not None:
            os._exit(BASE_STATUS + signum)
        self.signum = signum
        if self._is_idle:
            _say(f"error: {Stopped(signum, self.folder)}")
            os._exit(BASE_STATUS + signum)
        if not self._defers:
            raise Stopped(signum, self.folder)
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        _say(f"stopping after this block of work, in at most {GRACE:.0f} s; once more stops at once")

    def _raise_again(self, found: "sys.UnraisableHookArgs") -> bool:
        """Raise Stopped a moment later where it came in a finalizer, in which it would be lost; True for that case."""
        if not isinstance(found.exc_value, Stopped):
            return False
        signal.setitimer(signal.ITIMER_REAL, MOMENT)
        return True


def _say(line: str) -> None:
    """Write a line to stderr, by a call that a signal handler may make; a closed stderr stops nothing."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode())


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C raises Interrupted where it would raise KeyboardInterrupt, as a plugin may do by itself."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted


stop = Stop()
"""Of this process."""
