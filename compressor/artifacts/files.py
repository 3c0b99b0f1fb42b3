"""Atomic replacement of files and folders, strict JSON and JSON lines. Every failure is one line for the user."""

import enum
import errno
import json
import math
import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from compressor.errors import OutputError

SPACE, LARGER = "free some space", "raise the limit for the size of a file (ulimit -f)"
MORE_SPACE = f"{SPACE} or choose another folder"
MORE_RIGHTS = "allow writing to its folder or choose another one"
LARGER_FILES = f"{LARGER}, or choose a folder on another file system"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""How the errors of safetensors and tokenizers name the number of a system error."""
DAMAGED = ".damaged"
"""The end of the name under which a damaged file is kept."""
DEEPEST = 100
"""Levels of lists and objects in a JSON file. Files of this project have a tenth of them."""


class NestedTooDeeply(ValueError):
    """A JSON text has more levels than anything that this project writes."""

    def __init__(self) -> None:
        super().__init__("it is nested too deeply")


class FullDisk(OutputError):
    """There is no room for a file. In a run that can go on, `folder` is that of the run."""

    def __init__(self, failure: str, fix: str, room: str) -> None:
        super().__init__(f"{failure}; {fix}")
        self.failure, self.room = failure, room
        self.folder: Path | None = None

    def __str__(self) -> str:
        if self.folder is None:
            return super().__str__()
        return f"{self.failure}; {self.room}, and go on with: compressor resume {shlex.quote(str(self.folder))}"


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Replace the file `path` in one step. Yields a temporary path beside it, where the caller writes the new file.

    A reader sees the old file or the new one, never a part. If the caller fails, or the file cannot be written, `path`
    does not change. Missing parent folders are created. Raises OutputError for an OSError or a SafetensorError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _explained(f"cannot write {path}", MORE_SPACE):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            _save_to_disk(temporary, mode)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Replace `folder` and everything in it. Yields a new folder beside it, which the caller fills.

    If the caller fails, or a file cannot be written, `folder` does not change. A folder cannot be replaced in one step:
    the old one is renamed, then the new one. A process that is killed between these steps leaves the old folder
    complete as `.NAME.old`. Raises OutputError for an OSError or a SafetensorError.
    """
    partial, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "old"))
    with _explained(f"cannot write {folder}", MORE_SPACE):
        shutil.rmtree(partial, ignore_errors=True)  # left over from a process that was killed
        try:
            partial.mkdir(parents=True)
            probe = partial / ".mode"
            probe.touch()
            mode = probe.stat().st_mode
            probe.unlink()
            yield partial
            for path in partial.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    _save_to_disk(path, mode)
            try:
                if folder.exists():
                    shutil.rmtree(old, ignore_errors=True)
                    os.replace(folder, old)
                os.replace(partial, folder)
            except BaseException:
                if old.exists() and not folder.exists():
                    os.replace(old, folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts of a content to `path` in one step, like `replaced_file`; raises OutputError."""
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, like `write_bytes`."""
    # A lone surrogate (from a file name that is not UTF-8) becomes \udcxx, which is its escape in a JSON string.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def remove_file(path: Path) -> None:
    """Remove the file `path` if it exists; raises OutputError."""
    with _explained(f"cannot remove {path}", MORE_RIGHTS):
        path.unlink(missing_ok=True)


def remove_whole(path: Path) -> None:
    """Remove a file or a folder of ours; raises OutputError."""
    if path.is_symlink() or not path.is_dir():
        remove_file(path)
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror}; {MORE_RIGHTS}") from error


def set_aside(path: Path) -> Path:
    """Give a damaged file another name beside it, and return that; where this is not allowed, it stays as it is."""
    kept = path.with_name(f"{path.name}{DAMAGED}")
    with suppress(OSError):
        os.replace(path, kept)
    return kept


def write_json(path: Path, data: object) -> None:
    """Write `data` to `path` as strict JSON, with keys in their order; numbers that are not finite become null."""
    write_text(path, json.dumps(to_strict(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_json_line(path: Path, data: object) -> None:
    """Append `data` to `path` as one line of strict JSON, and flush it to the operating system."""
    # In ASCII, because some readers end a line at other Unicode line separators.
    line = json.dumps(to_strict(data), allow_nan=False) + "\n"
    with _explained(f"cannot add to {path}", MORE_SPACE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            # A run that was killed while writing left an incomplete line; the new line must not be appended to it.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode("ascii"))


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON is whatever was written
    """The content of the JSON file `path`; raises OutputError if it is missing or is not JSON."""
    try:
        with _explained(f"cannot read {path}", "is this the folder of a finished run?"):
            return parse_json(read_regular(path).decode("utf-8"))
    except ValueError as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise OutputError(f"{path} is not valid JSON ({reason}); it was changed or cut off, run again") from error


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError for anything else: reading a pipe or a device may never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # the system says what a folder is
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes()


def parse_json(text: str | bytes, **hooks: Any) -> Any:  # noqa: ANN401 - JSON is whatever was written
    """The content of a JSON text, with the hooks of `json.loads`. Raises ValueError also for one nested too deeply.

    Whoever walks through the content may so use recursion.
    """
    try:
        data = json.loads(text, **hooks)
    except RecursionError:
        raise NestedTooDeeply from None
    level = [data]
    for _ in range(DEEPEST):
        nested = [value for value in level if isinstance(value, dict | list)]
        inside = [value.values() if isinstance(value, dict) else value for value in nested]
        level = [item for items in inside for item in items]
        if not level:
            return data
    raise NestedTooDeeply


def make_folder(folder: Path, fix: str) -> None:
    """Create `folder` where it is missing; raises OutputError, which ends with the `fix`."""
    with _explained(f"cannot write to the folder {folder}", fix):
        folder.mkdir(parents=True, exist_ok=True)


def to_strict(data: object) -> Any:  # noqa: ANN401 - JSON is whatever was given
    """`data` converted to values of strict JSON.

    Non-finite numbers become null, so that a report can be written even if something went wrong. Enums become their
    values, paths become strings, array scalars become plain numbers. Raises OutputError for anything else.
    """
    if isinstance(data, enum.Enum):
        return to_strict(data.value)
    if data is None or isinstance(data, str | bool | int):
        return data
    if isinstance(data, float):
        return float(data) + 0.0 if math.isfinite(data) else None  # -0.0 becomes 0.0
    if isinstance(data, Mapping):
        return {str(to_strict(key)): to_strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [to_strict(value) for value in data]
    if isinstance(data, os.PathLike):
        return os.fspath(data)
    if getattr(data, "shape", None) == () and hasattr(data, "item"):
        return to_strict(data.item())
    raise OutputError(
        f"a {type(data).__name__} cannot be written as JSON, got {data!r:.80}; give numbers, strings, lists or mappings"
    )


@contextmanager
def _explained(failure: str, fix: str) -> Iterator[None]:
    """Convert an error of the disk into one line for the user: what failed, the reason, and what helps."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and not is_full_disk(error):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        failure = f"{failure}: {str(reason).splitlines()[0]}"
        if is_full_disk(error):
            is_limit = find_number(error) == errno.EFBIG
            raise FullDisk(failure, LARGER_FILES if is_limit else fix, LARGER if is_limit else SPACE) from error
        raise OutputError(f"{failure}; {fix}") from error


def is_full_disk(error: Exception) -> bool:
    """Whether an error says that there is no room on a disk."""
    return find_number(error) in NO_ROOM


def find_number(error: BaseException) -> int | None:
    """The number of a system error, if it is one. Some libraries raise a plain Exception for that."""
    found = SYSTEM_ERROR.search(str(error))
    return error.errno if isinstance(error, OSError) and error.errno else int(found[1]) if found else None


def _save_to_disk(path: Path, mode: int) -> None:
    """Sync a file to disk and set its permissions to `mode`; files of safetensors are readable only by their owner."""
    path.chmod(stat.S_IMODE(mode))
    with path.open("rb") as file:
        os.fsync(file.fileno())
