"""The room of a disk: tried by reserving it, and nothing stays."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.artifacts import disk_space
from compressor.artifacts.disk_space import find_room, open_unnamed
from tests.support.small_disks import fill, limited_files, small_disk

KIB = 1 << 10


def test_a_disk_with_room_has_it_and_keeps_it(tmp_path: Path) -> None:
    assert find_room(tmp_path, 100 * KIB) == 100 * KIB
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_says_what_is_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        for size in (100 * KIB, 256 * KIB):
            assert find_room(disk, size) == size
        assert find_room(disk, 1 << 40) == 256 * KIB
        fill(disk, left=64 * KIB)
        assert find_room(disk, 128 * KIB) == 64 * KIB
        fill(disk)
        assert find_room(disk, KIB) == 0
        assert [path.name for path in disk.iterdir()] == ["filling"]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_a_quota_counts_even_if_the_disk_has_room(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "allocate", lambda descriptor, size: 0 if size <= 50 * KIB else number)
    assert 49 * KIB <= find_room(tmp_path, 60 * KIB) <= 50 * KIB
    assert find_room(tmp_path, 50 * KIB) == 50 * KIB


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EFBIG])
def test_a_file_system_that_cannot_reserve_is_believed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "allocate", lambda descriptor, size: number)
    assert find_room(tmp_path, 60 * KIB) == 60 * KIB


def test_a_limit_of_one_file_is_no_limit_of_the_disk(tmp_path: Path) -> None:
    with limited_files(10 * KIB):
        assert find_room(tmp_path, 100 * KIB) == 100 * KIB


def test_an_interrupted_attempt_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [errno.EINTR, errno.EINTR, 0]
    monkeypatch.setattr(disk_space, "allocate", lambda descriptor, size: numbers.pop(0))
    assert find_room(tmp_path, KIB) == KIB and numbers == []


def test_a_folder_in_which_no_file_can_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk_space, "open_unnamed", refuse)
    number = errno.EROFS
    with pytest.raises(OSError, match="Read-only"):
        find_room(tmp_path, KIB)
    number = errno.ENOSPC  # no room for another name
    assert find_room(tmp_path, KIB) == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from compressor.artifacts import disk_space
disk_space.allocate = lambda descriptor, size: os.kill(os.getpid(), signal.SIGKILL)
disk_space.find_room(Path(sys.argv[1]), 1000)
"""


def test_a_process_that_is_killed_while_it_tries_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    with open_unnamed(tmp_path) as file:
        file.write(b"x")
        assert list(tmp_path.iterdir()) == []
