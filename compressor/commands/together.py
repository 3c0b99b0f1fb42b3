"""Several processes that were started together for one run: the first does it, the others help it to train."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from compressor.errors import ConfigError


@contextmanager
def leading() -> Iterator[bool]:
    """Inside, whether this process does the run. The others have done their part before; they wait for the first.

    Raises ConfigError for a number of processes that is none.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if not count.isdecimal() or len(count) > 9:
        raise ConfigError(f"WORLD_SIZE must be the number of processes, got {count!r:.80}; start them by a launcher")
    if int(count) < 2:
        yield True
        return
    from compressor.recovery.processes import join_processes
    from compressor.recovery.training_together import serve

    processes = join_processes()
    if not processes.is_first:
        serve(processes)
        yield False
        return
    try:
        yield True
    finally:
        processes.tell(None)
