"""The folder of a run: a mark that it is ours, a lock for one process at a time, and what the run is doing now."""

import errno
import fcntl
import json
import os
import shlex
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compressor.artifacts.disk_space import find_room
from compressor.artifacts.files import make_folder, parse_json, read_regular, remove_file, write_text
from compressor.artifacts.run_files import (
    FILES,
    FOLDERS,
    HYDRA_FOLDER,
    LOG,
    MARK,
    SAVED,
    STATE,
    STATUS,
    find_foreign,
    find_leftovers,
    find_links,
    find_misplaced,
    find_unfinished,
    is_number,
    is_unused,
    list_jobs,
    list_stored,
    name_kind,
    remove_state,
    separate_links,
)
from compressor.errors import CannotFit, OutputError

RUNNING, INTERRUPTED, FAILED, DONE = "running", "interrupted", "failed", "done"
STATUSES = (RUNNING, INTERRUPTED, FAILED, DONE)
FIRST_FILES = 1 << 17
"""Bytes that must be free at the start: for the configuration, the state and a report of a failure."""
SPARE = 64
"""Characters of status.json for longer names of a status, and numbers with more digits."""
HEARTBEAT = 10.0
"""Seconds between two signs of life."""
SILENT = 6 * HEARTBEAT
"""Seconds without a sign of life after which a process on another machine counts as dead."""

_held: dict[Path, int] = {}
"""Folder -> file descriptor of its lock, for the folders that this process holds."""
_written: dict[Path, tuple[str, list[str]]] = {}
"""Folder -> the command that works in it now, and the names of those of FILES that it has written."""
_status_lock = threading.Lock()
"""So that no sign of life replaces a status that names more files."""


def check_folder(folder: Path, inputs: Iterable[tuple[str, Path]], multirun: bool = False) -> None:
    """Raise OutputError unless a command may write its results to `folder`; nothing is created or changed.

    `inputs` are keys of the configuration and what they read: a model folder, or a file. `folder` must not be, contain
    or lie in a folder that is read, must not contain a file that is read, and must not lie in the folder of another
    run. If it exists, it must be empty or ours, of the same kind (one run, or a multirun), and `check_content` holds.
    """
    another = name_another(multirun)
    if not is_name(str(folder)):
        raise OutputError(f"the folder for results {str(folder)!r:.200} is no name that can be written; {another}")
    place = resolve(folder)
    for key, path in inputs:
        read = resolve(path)
        if place == read or place in read.parents or (read.is_dir() and read in place.parents):
            where = "is" if place == read else "contains" if place in read.parents else "lies in"
            raise OutputError(
                f"the folder for results {folder} {where} `{key}` {path}, which must not be touched; {another}"
            )
    for parent in place.parents:
        if os.path.isfile(parent / MARK):
            raise OutputError(
                f"the folder for results {folder} lies in {parent}, which is the folder of another run; {another}"
            )
    check_content(folder, multirun)
    if not place.is_dir():
        return
    jobs = list_jobs(place)
    if multirun and (place / STATUS).exists():
        raise OutputError(f"{folder} is the folder of a single run, and no multirun can use it; {another}")
    if not multirun and jobs:
        raise OutputError(f"{folder} is the folder of a multirun, and no single run can use it; {another}")
    for job in jobs:
        if read_status(job).get("status") == DONE:
            _refuse_obstacles(job, multirun)  # nothing is written there, but its results are read
        else:
            check_content(job, multirun)


def is_name(path: str) -> bool:
    """Whether a path is text that every file can hold, without NUL."""
    with suppress(UnicodeEncodeError):
        return "\0" not in path and bool(path.encode())
    return False


def check_content(folder: Path, multirun: bool = False) -> None:
    """Raise OutputError if `folder` holds a finished run, or anything that must not be removed or written to.

    That is a file of the user, in a folder without a mark or among files that are cleared, a link, and a file where a
    folder is written or the reverse.
    """
    place = resolve(folder)
    multirun = multirun or is_job(place)
    another, status = name_another(multirun), read_status(place)
    try:
        found = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise OutputError(f"the folder for results {str(folder)!r:.200} cannot be used: {reason}; {another}") from None
    if found is None:
        return
    if not (place / MARK).is_file() and status.get("status") != DONE:
        if found and (missing := find_uncopied(place)):
            raise OutputError(describe_copy(folder, missing))
        _refuse_foreign(folder, found, another)
    elif status.get("status") == DONE:
        raise OutputError(
            f"{folder} already holds a finished run or forecast; {another} (from Python: folder=DIR), or remove it"
        )
    elif (results := find_unexplained(place, status)) is not None:
        raise OutputError(
            f"{folder} holds results ({', '.join(results)}), and its {STATUS} does not say whether they are finished; "
            f"{another}, or remove it"
        )
    _refuse_obstacles(folder, multirun)
    owned = status.get("files")
    names = [name for name in FILES if isinstance(owned, list) and name not in owned and (place / name).exists()]
    names += [str(path.relative_to(place)) for path in find_foreign(place)]
    _refuse_foreign(folder, names, "move them, or " + another)


def find_uncopied(folder: Path) -> list[str]:
    """The hidden files that the folder of a run or a multirun lacks, as after `cp -r OLD/* NEW`; empty for others."""
    status = read_status(folder)
    is_run = status.get("status") in STATUSES and isinstance(status.get("command"), str)
    if not is_run and not any((job / MARK).is_file() for job in list_jobs(folder)):
        return []
    # Hydra is not there where a run was started from Python.
    needed = (MARK,) if str(status.get("command")).startswith("compressor.") else (MARK, HYDRA_FOLDER)
    return [name for name in needed if not (folder / name).exists()]


def describe_copy(folder: Path, missing: Sequence[str]) -> str:
    """What is wrong with a folder of a run that lacks hidden files, and what to do."""
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{folder} is the folder of a run without its hidden files: {' and '.join(missing)} {verb} missing; copy all "
        f"hidden files too, as `cp -r OLD/. {shlex.quote(str(folder))}` does"
    )


def find_unexplained(folder: Path, status: Mapping[str, Any]) -> list[str] | None:
    """The names of results in a folder whose `status` cannot be read; None if there is nothing that could be lost.

    Before there is a result there is a status, so somebody removed or damaged it. A run that can go on makes the same
    results again.
    """
    if status.get("status") in STATUSES or (folder / STATE).is_dir():
        return None
    return [name for name in (*FILES, *FOLDERS) if (folder / name).exists()] or None


def _refuse_obstacles(folder: Path, multirun: bool) -> None:
    place, another = resolve(folder), name_another(multirun)
    for link in find_links(place):
        raise OutputError(f"{link} is a link, and a run writes nothing through a link; remove it, or {another}")
    for path, wanted in find_misplaced(place):
        raise OutputError(
            f"{path} is {name_kind(path)}, and a run writes {wanted} of this name; move it away, or {another}"
        )


def _refuse_foreign(folder: Path, found: Sequence[str], fix: str) -> None:
    if found:
        named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise OutputError(
            f"the folder for results {folder} has files that no command of compressor wrote: {named}; {fix}"
        )


def is_job(place: Path) -> bool:
    """Whether a folder is that of a job: it has a number, and lies in the folder of a multirun."""
    return is_number(place.name) and (place.parent / MARK).is_file()


def name_another(multirun: bool) -> str:
    """How to choose another folder for results."""
    return f"choose another by hydra.{'sweep' if multirun else 'run'}.dir=DIR"


def resolve(path: Path) -> Path:
    """The absolute path, without symbolic links."""
    return Path(os.path.realpath(path))


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
        if place in missing or is_empty:
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


def read_status(folder: Path) -> dict[str, Any]:
    """The content of status.json; empty if there is none that can be read."""
    try:
        status = parse_json(read_regular(folder / STATUS).decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


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
    command, written = working
    new = [name for name in names if name not in written]
    for name in new:
        if os.path.lexists(folder / name):
            raise OutputError(
                f"{folder / name} was put there by somebody else while the run was working; move it away and start "
                "the command again"
            )
    if new:
        written += new
        try:
            write_status(folder, RUNNING, command, written)
        except OutputError:  # a full disk, on which the file itself may not fit either
            require_held(folder)
            overwrite_status(folder, RUNNING, command, written)


def describe_status(status: str, command: str, files: Sequence[str]) -> dict[str, object]:
    """The content of status.json."""
    process = {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
    return {"status": status} | process | {"command": command, "files": [*files]}


def require_held(folder: Path) -> None:
    """Raise OutputError if this process held `folder`, and it was removed, renamed or replaced meanwhile."""
    descriptor = _held.get(resolve(folder))
    if descriptor is None:
        return
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), os.stat(folder / MARK)):
            return
    raise OutputError(
        f"{folder} was removed, renamed or replaced while the run was working in it; start the run again, or resume "
        "the renamed folder"
    )


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


def remove_whole(path: Path) -> None:
    """Remove a file or a folder of ours; raises OutputError."""
    if path.is_symlink() or not path.is_dir():
        remove_file(path)
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise OutputError(
            f"cannot remove {path}: {error.strerror}; remove it yourself or choose another folder"
        ) from error
