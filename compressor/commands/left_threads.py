"""Threads that a plugin started and that do not end: Python would wait for them for ever, after the work is done."""

import os
import sys
import threading
import time
from contextlib import suppress

WAIT = 5.0
"""Seconds that threads have to end by themselves."""


def end_without_threads(status: int) -> None:
    """From now on the process ends with this exit status, `WAIT` seconds after Python began to wait for threads."""
    threading.Thread(target=_end, args=(status,), daemon=True).start()


def _end(status: int) -> None:
    while threading.main_thread().is_alive():
        time.sleep(0.05)
    time.sleep(WAIT)
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]
    if left:
        with suppress(OSError, ValueError):
            sys.stderr.write(
                f"WARNING: threads of a plugin do not end: {', '.join(left)}; the command ends all the same\n"
            )
            sys.stderr.flush()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)
