"""The room that a folder really has, tried by reserving it.

What the system calls free can be more than a process may write: quotas and reserved blocks are not counted everywhere.
"""

import ctypes
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EFBIG)
"""The file system cannot reserve blocks, or not so many for one file."""
PRECISION = 64
"""Where there is too little room, it is found to this part of the size."""


def read_free_disk(folder: Path) -> int:
    """Free bytes on the disk of `folder`, as the system says."""
    return shutil.disk_usage(folder).free


def find_room(folder: Path, size: int) -> int:
    """Bytes that can be written to `folder`, at most `size`; nothing of them stays used.

    Where the file system cannot reserve space, it is what the system calls free. Raises OSError if no file can be
    created for another reason than a lack of space.
    """
    free = min(size, read_free_disk(folder))
    if free < size:
        return free
    try:
        with open_unnamed(folder) as file:
            descriptor = file.fileno()
            if reserves(descriptor, size):
                return size
            low, high = 0, size
            while high - low > size // PRECISION + 1:
                middle = (low + high) // 2
                low, high = (middle, high) if reserves(descriptor, middle) else (low, middle)
            return low
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # not even for an empty file
            return 0
        raise


def open_unnamed(folder: Path) -> IO[bytes]:
    """A new file in `folder` that has no name, so that it vanishes with the process, however that ends.

    Where the file system needs a name, it has one for a moment, which the next run in the folder would remove.
    """
    return tempfile.TemporaryFile(buffering=0, prefix=".room.", suffix=".tmp", dir=folder)


def reserves(descriptor: int, size: int) -> bool:
    """Whether blocks for `size` bytes can be reserved for a file; True where the file system cannot tell."""
    os.ftruncate(descriptor, 0)  # blocks of an earlier attempt
    if size == 0:
        return True
    while True:
        number = allocate(descriptor, size)
        if number == errno.EINTR:
            continue
        if number in (errno.ENOSPC, errno.EDQUOT):
            return False
        if number == 0 or number in CANNOT_RESERVE:
            return True
        raise OSError(number, os.strerror(number))


def allocate(descriptor: int, size: int) -> int:
    """Reserve blocks; returns 0 or the number of the error.

    It is not os.posix_fallocate: where the file system cannot reserve, that writes into every block, which takes as
    long as writing the whole file.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is None:  # not Linux
        return errno.ENOSYS
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return ctypes.get_errno() if function(descriptor, 0, 0, size) else 0
