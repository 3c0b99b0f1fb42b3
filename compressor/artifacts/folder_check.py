"""Whether a command may write its results to a folder: nothing of the user, and of no other run, is touched."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressor.artifacts.run_files import (
    FILES,
    FOLDERS,
    HYDRA_FOLDER,
    MARK,
    STATE,
    STATUS,
    find_foreign,
    find_links,
    find_misplaced,
    is_number,
    list_jobs,
    name_kind,
)
from compressor.artifacts.run_status import DONE, STATUSES, read_status
from compressor.errors import OutputError


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
