"""What a command does in the folder of its run: it clears it, keeps status.json, and says which files it writes."""

import json
import os
import shlex
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from compressor.artifacts.files import remove_file, remove_whole, write_text
from compressor.artifacts.folder_check import check_content, resolve
from compressor.artifacts.folder_lock import held_folder, require_held
from compressor.artifacts.run_files import (
    FILES,
    FOLDERS,
    LOG,
    MARK,
    SAVED,
    STATE,
    STATUS,
    find_foreign,
    find_leftovers,
    list_stored,
    remove_state,
)
from compressor.artifacts.run_status import DONE, FAILED, INTERRUPTED, RUNNING, describe_status
from compressor.errors import CannotFit, OutputError

SPARE = 64
"""Characters of status.json for longer names of a status, and numbers with more digits."""
HEARTBEAT = 10.0
"""Seconds between two signs of life."""

_written: dict[Path, tuple[str, list[str]]] = {}
"""Folder -> the command that works in it now, and the names of those of FILES that it has written."""
_status_lock = threading.Lock()
"""So that no sign of life replaces a status that names more files."""


@contextmanager
def working_in(folder: Path, command: str) -> Iterator[None]:
    """Everything a command does in its folder: hold it, clear it of a failed command's results, and keep status.json.

    Raises OutputError, before anything is removed, for a folder that is not ours, is in use, or holds a run that is
    finished or can go on.
    """
    check_content(folder)
    if (folder / STATE).is_dir():
        raise OutputError(
            f"{folder} holds an interrupted run; go on with it by compressor resume {shlex.quote(str(folder))}, or "
            "choose another folder by hydra.run.dir=DIR"
        )
    with held_folder(folder), nothing_left_if_refused(folder), recorded_status(folder, command):
        yield


@contextmanager
def recorded_status(folder: Path, command: str) -> Iterator[None]:
    """Remove the results of a command that did not finish, and keep status.json while the block runs."""
    clear_results(folder)
    written: list[str] = []
    _written[resolve(folder)] = command, written
    try:
        with heartbeat(folder, command, written):
            yield
    except BaseException as error:
        status = FAILED if isinstance(error, Exception) else INTERRUPTED
        written = [name for name in written if (folder / name).exists()]
        try:
            write_status(folder, status, command, written)
        except OutputError:  # about which the error itself says more
            overwrite_status(folder, status, command, written)
        raise
    finally:
        del _written[resolve(folder)]
    write_status(folder, DONE, command, written)


@contextmanager
def heartbeat(folder: Path, command: str, files: Sequence[str] = ()) -> Iterator[None]:
    """Write `running` to status.json now and every few seconds, until the block ends."""
    write_status(folder, RUNNING, command, files)
    ends = threading.Event()

    def beat() -> None:
        while not ends.wait(HEARTBEAT):
            with suppress(OutputError):  # a disk that is full for a while; the run itself says so
                write_status(folder, RUNNING, command, files)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


@contextmanager
def nothing_left_if_refused(folder: Path) -> Iterator[None]:
    """If a command in the block cannot fit, nothing of it stays in the folder; answers of an interrupted run do."""
    try:
        yield
    except CannotFit:
        clear_results(folder)
        if not list_stored(folder / STATE):
            remove_state(folder)
            remove_file(folder / LOG)
            remove_file(folder / STATUS)
        raise


def write_status(folder: Path, status: str, command: str, files: Sequence[str] = ()) -> None:
    """Write what a run is: its status, process, machine, time and command, and the names of `files` that it wrote.

    Raises OutputError, also for a folder that this process holds, and that was removed or replaced meanwhile.
    """
    require_held(folder)
    with _status_lock:
        content = describe_status(status, command, files)
        # Room for all names, so that each can be added on a full disk.
        write_text(folder / STATUS, json.dumps(content).ljust(len(json.dumps(content | {"files": FILES})) + SPARE))


def claim_files(folder: Path, names: Iterable[str]) -> None:
    """Record that the command that works in `folder` is about to write the files with these `names` of FILES.

    The next start removes only what is recorded so. Raises OutputError for a file that is there and is not: it was put
    there while the command was working. Nothing is recorded where no command works in the folder.
    """
    if (working := _written.get(resolve(folder))) is None:
        return
    require_held(folder)
    command, written = working
    new = [name for name in names if name not in written]
    for name in new:
        if os.path.lexists(folder / name):
            raise OutputError(describe_intruder(folder / name))
    if new:
        written += new
        try:
            write_status(folder, RUNNING, command, written)
        except OutputError:  # a full disk, on which the file itself may not fit either
            require_held(folder)
            overwrite_status(folder, RUNNING, command, written)


def require_own(folder: Path) -> None:
    """Raise OutputError for a file in a folder of results, such as that of the model, that the run did not write."""
    if (path := next(iter(find_foreign(folder)), None)) is not None:
        raise OutputError(describe_intruder(path))


def describe_intruder(path: Path) -> str:
    return f"{path} was put there by somebody else while the run was working; move it away and start the command again"


def overwrite_status(folder: Path, status: str, command: str, files: Sequence[str]) -> None:
    """As `write_status`, in the space that the file has already, for a disk that is full."""
    with suppress(OSError):
        content = json.dumps(describe_status(status, command, files)).encode()
        descriptor = os.open(folder / STATUS, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            found = os.fstat(descriptor)
            if len(content) <= found.st_size and found.st_nlink == 1:  # else another folder shares the file
                os.pwrite(descriptor, content.ljust(found.st_size), 0)
        finally:
            os.close(descriptor)


def clear_results(folder: Path) -> None:
    """Remove the results of a command that did not finish, from a folder that is ours; the status stays."""
    assert (folder / MARK).is_file(), folder
    for name in FILES:
        remove_file(folder / name)
    for left in find_leftovers(folder):
        remove_whole(left)
    for name in FOLDERS:
        remove_whole(folder / name)
    remove_file(folder / SAVED)  # last: what is left of a folder must still be known as ours
