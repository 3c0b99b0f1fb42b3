"""The mark that a folder is ours, and a lock on it: one process at a time works in the folder of a run."""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compressor.artifacts.disk_space import find_room
from compressor.artifacts.files import make_folder, parse_json, remove_file, remove_whole
from compressor.artifacts.folder_check import is_job, name_another, resolve
from compressor.artifacts.run_files import MARK, find_unfinished, is_unused, separate_links
from compressor.artifacts.run_status import RUNNING, read_status
from compressor.errors import OutputError

FIRST_FILES = 1 << 17
"""Bytes that must be free at the start: for the configuration, the state and a report of a failure."""
SILENT = 60.0
"""Seconds after which a process on another machine counts as dead; it gives a sign of life every ten seconds."""

_held: dict[Path, int] = {}
"""Folder -> file descriptor of its lock, for the folders that this process holds."""


@contextmanager
def held_folder(folder: Path, multirun: bool = False) -> Iterator[None]:
    """Create and mark the folder, and hold its lock. Raises OutputError if another process works in it.

    If nothing is done in it, a folder that is created here is removed at the end, and an empty one is empty again.

    The operating system releases the lock of a process that ends, however it ends. A process on another machine is
    believed dead if it has given no sign of life for a minute.
    """
    place = resolve(folder)
    if place in _held:  # by this process: a multirun or a command that opened the folder before Hydra did
        yield
        return
    missing = [path for path in (place, *place.parents) if not path.exists()]
    is_empty = place.is_dir() and not any(place.iterdir())
    another = name_another(multirun or is_job(place))
    make_folder(folder, another)
    separate_links(folder)
    descriptor = open_mark(folder / MARK, another)
    try:
        _lock(descriptor, folder)
        for left in find_unfinished(folder):
            remove_file(left)
        _require_room(folder, another)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        _held[place] = descriptor
        yield
    finally:
        _held.pop(place, None)
        if (place in missing or is_empty) and _is_there(descriptor, place):
            _remove_unused(place, missing)
        os.close(descriptor)


def mark_folder(folder: Path) -> None:
    """Create and mark the folder of a job, in a multirun that this process holds; raises OutputError.

    Files that it shares with another folder by hard links are its own afterwards.
    """
    another = name_another(is_job(resolve(folder)))
    make_folder(folder, another)
    separate_links(folder)
    os.close(open_mark(folder / MARK, another))


def require_held(folder: Path) -> None:
    """Raise OutputError if this process held `folder`, and it was removed, renamed or replaced meanwhile."""
    descriptor = _held.get(resolve(folder))
    if descriptor is None or _is_there(descriptor, folder):
        return
    raise OutputError(
        f"{folder} was removed, renamed or replaced while the run was working in it; start the run again, or resume "
        "the renamed folder"
    )


def _is_there(descriptor: int, folder: Path) -> bool:
    """Whether the mark that is open is still that of the folder."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / MARK))
    return False


def _remove_unused(folder: Path, created: Sequence[Path]) -> None:
    """Remove what was written to `folder`, and those folders that were `created`, if nothing was done in it."""
    with suppress(OSError, OutputError):
        if is_unused(folder):
            for path in folder.iterdir():
                remove_whole(path)
            for path in created:
                path.rmdir()


def _require_room(folder: Path, another: str) -> None:
    """Raise OutputError for a disk that has no room for the files with which every command begins."""
    try:
        room = find_room(folder, FIRST_FILES)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; {another}") from None
    if room < FIRST_FILES:
        raise OutputError(
            f"the disk of {folder} is full: {FIRST_FILES} bytes are needed before any result, {room} are free; free "
            f"some space, or {another}"
        )


def open_mark(path: Path, another: str) -> int:
    """Open the mark, and create it where there is none. Raises OutputError for a link, which would lead elsewhere."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        reason = "it is no regular file"
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
    raise OutputError(f"cannot open {path}: {reason}; {another}")


def _lock(descriptor: int, folder: Path) -> None:
    owner = _read_owner(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return  # a file system without locks; signs of life must do
        raise OutputError(f"{folder} is in use by {_describe(owner)}; wait for it or choose another folder") from None
    here, status = socket.gethostname(), read_status(folder)
    is_elsewhere = owner.get("host", here) != here and status.get("status") == RUNNING
    if is_elsewhere and time.time() - _number(status.get("heartbeat")) < SILENT:
        raise OutputError(f"{folder} is in use by {_describe(owner)}; wait for it or choose another folder")


def _read_owner(descriptor: int) -> dict[str, Any]:
    with suppress(ValueError):
        owner = parse_json(os.pread(descriptor, 4096, 0))
        return owner if isinstance(owner, dict) else {}
    return {}


def _describe(owner: Mapping[str, Any]) -> str:
    pid, host = owner.get("pid"), owner.get("host")
    return (
        f"process {pid if isinstance(pid, int) else '?'} on "
        f"{host if isinstance(host, str) and host.isprintable() else 'another machine'}"
    )


def _number(value: object) -> float:
    with suppress(OverflowError):
        return float(value) if isinstance(value, int | float) else 0.0
    return 0.0
