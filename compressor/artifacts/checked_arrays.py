"""Files of named arrays that prove to be whole: a checksum and the key of the content are inside.

Caches and the state of a search are such files. A file that is damaged, belongs to other content or to another user is
never believed: it is removed where that is allowed, one line says so, and its content is computed again. A damaged file
of a state is kept under another name, because it may hold hours of work.
"""

import hashlib
import json
import logging
import operator
import os
import re
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts.files import parse_json, set_aside, write_bytes
from compressor.errors import OutputError

log = logging.getLogger(__name__)
FACTS, KEY, CHECKSUM = "facts", "key", "sha256"
LENGTH, ALIGNMENT = 8, 8
"""Bytes of the length of a safetensors header, and what a header is padded to."""
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{
        f"{kind}{bits}": np.dtype(f"<{kind.lower()}{bits // 8}")
        for kind in "IUF"
        for bits in (8, 16, 32, 64)[kind == "F" :]
    },
}
"""The dtypes of numpy by the names that safetensors gives them."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LITTER_SECONDS = 3600.0
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""How a file is named that will be renamed when it is whole."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Content:
    """Arrays by name, and plain facts beside them."""

    arrays: Arrays
    facts: Mapping[str, Any]


class OtherContent(ValueError):
    """A file is whole, and has another key."""


def write_arrays(path: Path, key: str, arrays: Arrays, facts: Mapping[str, Any]) -> int:
    """Write arrays and facts in one atomic step; returns the bytes written. Raises OutputError."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    written = json.dumps(facts, sort_keys=True)
    metadata = {FACTS: written, KEY: key, CHECKSUM: compute_checksum(key, contiguous, written)}
    parts = serialize_arrays(contiguous, metadata)
    write_bytes(path, *parts)
    return sum(map(len, parts))


def serialize_arrays(arrays: Arrays, metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The parts of a safetensors file, of which only the first takes memory. Equal arrays give equal bytes.

    safetensors itself copies all arrays, and writes the metadata in an order that differs between processes.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that each array is aligned
    end = 0
    for name in names:
        array = arrays[name]
        start, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": [start, end]}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % ALIGNMENT)
    return [len(written).to_bytes(LENGTH, "little") + written, *(view_bytes(arrays[name]) for name in names)]


def view_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, in its own memory."""
    return array.reshape(-1).view(np.uint8).data


def read_arrays(path: Path, key: str | None = None, lost: str | None = None) -> Content | None:
    """The content of a file with this key; None if there is no such file, or if it cannot be believed.

    `key` None accepts any. A damaged file, and one of other content, is removed, and one line of the log says so. Where
    that says what is `lost`, a damaged file is kept beside its place.
    """
    try:
        if not is_trusted(path):
            return None
        content = bytearray(path.stat().st_size)  # so that the arrays can be written to
        with path.open("rb") as file:
            del content[file.readinto(content) :]
        return parse_arrays(content, key)
    except OtherContent:
        log.warning("%s belongs to other settings, weights or texts, and its content is made anew", path)
        with suppress(OSError):
            path.unlink()
    except OSError as error:
        log.warning("%s cannot be read and is ignored: %s", path, error.strerror)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "unreadable"
        if lost is not None:
            log.warning("%s is damaged (%s): %s; it is kept as %s", path, reason, lost, set_aside(path).name)
            return None
        log.warning("%s is damaged and is dropped: %s", path, reason)
        with suppress(OSError):
            path.unlink()
    return None


def is_trusted(path: Path) -> bool:
    """Whether there is a regular file here of this user or of root; False without a line if there is nothing."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(facts.st_mode):
        facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        log.warning("%s is no regular file and is ignored", path)
        return False
    if facts.st_uid not in (os.getuid(), 0):
        log.warning("%s belongs to another user and is ignored", path)
        return False
    return True


def parse_arrays(content: bytes | bytearray, key: str | None = None) -> Content:
    """Arrays and facts of the bytes of a file; raises ValueError, KeyError or TypeError for anything else.

    The arrays are views of `content`, so that a large file takes memory once.
    """
    start = LENGTH + int.from_bytes(content[:LENGTH], "little")
    header = json.loads(content[LENGTH:start])
    metadata = header.pop("__metadata__")
    arrays: Arrays = {}
    for name, said in header.items():
        dtype, (first, last) = DTYPES[said["dtype"]], said["data_offsets"]
        if not 0 <= first <= last <= len(content) - start:
            raise ValueError("it is cut off")
        values = np.frombuffer(memoryview(content)[start + first : start + last], dtype)
        arrays[name] = values.reshape([*map(operator.index, said["shape"])])
    if key is not None and metadata[KEY] != key:
        raise OtherContent
    if compute_checksum(metadata[KEY], arrays, metadata[FACTS]) != metadata[CHECKSUM]:
        raise ValueError("its checksum is wrong")
    facts = parse_json(metadata[FACTS])
    if not isinstance(facts, dict):
        raise ValueError("its facts are no object")
    return Content(arrays, facts)


def compute_checksum(key: str, arrays: Arrays, facts: str) -> str:
    """sha256 of the key, the facts, and name, dtype, shape and bytes of each array."""
    digest = hashlib.sha256(json.dumps([key, facts]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(view_bytes(array))
    return digest.hexdigest()


def try_write(path: Path, key: str, arrays: Arrays, facts: Mapping[str, Any]) -> int:
    """As `write_arrays` for a cache: a failure is one line of the log, and 0 bytes."""
    try:
        return write_arrays(path, key, arrays, facts)
    except OutputError as error:
        reason = str(error).partition(";")[0]
        log.warning("it is not cached: %s; free some space, or set COMPRESSOR_CACHE to a folder", reason)
        return 0


def remove_litter(folder: Path) -> None:
    """Remove temporary files that a process left behind when it was killed more than an hour ago."""
    for path in folder.glob(".*.tmp"):
        if not TEMPORARY.fullmatch(path.name):  # a file of the user
            continue
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LITTER_SECONDS:
                path.unlink()
