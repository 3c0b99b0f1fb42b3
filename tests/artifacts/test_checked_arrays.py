"""Files of arrays prove to be whole; anything else is dropped with one line, and never believed."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor.artifacts.checked_arrays import parse_arrays, read_arrays, write_arrays

ARRAYS = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "b": np.array([True, False]), "none": np.zeros((0, 4))}
FACTS = {"prefix_tokens": 4, "nested": {"floor": 0.5, "names": ["x", "ü"]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "file.safetensors", "key", ARRAYS, FACTS)
    return tmp_path / "file.safetensors"


def test_what_is_written_is_read(path: Path) -> None:
    content = read_arrays(path, "key")
    assert content is not None and content.facts == FACTS and set(content.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(content.arrays[name], array) and content.arrays[name].dtype == array.dtype


@pytest.mark.parametrize("dtype", [*"bBhHiIlLefd?"])
def test_every_dtype_is_that_of_safetensors(dtype: str, tmp_path: Path) -> None:
    arrays = {"x": np.ones((2, 3), dtype), "scalar": np.array(1, dtype), "transposed": np.eye(3, 5, dtype=dtype).T}
    path = tmp_path / "file.safetensors"
    assert write_arrays(path, "key", arrays, {}) == path.stat().st_size
    content = read_arrays(path, "key")
    assert content is not None
    for found in (safetensors.numpy.load_file(path), content.arrays):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert np.array_equal(found[name], array) and found[name].dtype == array.dtype
            assert found[name].shape == array.shape


def test_a_large_file_takes_memory_once(tmp_path: Path) -> None:
    size = 8 << 20
    arrays = {name: np.zeros(size // 8 // 4) for name in "abcd"}
    peaks = []
    for step in (lambda: write_arrays(tmp_path / "file", "key", arrays, {}), lambda: read_arrays(tmp_path / "file")):
        tracemalloc.start()
        assert step() is not None
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < size / 8 and size <= peaks[1] < size * 9 / 8


def test_a_missing_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_arrays(tmp_path / "none.safetensors") is None
    assert not caplog.records


def test_content_of_another_question_is_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_arrays(path, "another") is None
    assert not path.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} belongs to other settings, weights or texts, and its content is made anew"
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_is_believed(path: Path, place: int, bit: int) -> None:
    """Every bit of the file: it reads as before, or as nothing."""
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    found = read_arrays(damaged, "key")
    if found is not None:
        assert found.facts == FACTS and all(np.array_equal(found.arrays[name], ARRAYS[name]) for name in ARRAYS)
    else:
        assert not damaged.exists()


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(Exception) as caught:
        parse_arrays(content)
    assert not isinstance(caught.value, MemoryError | SystemError)


def test_every_cut_is_dropped(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        cut = path.with_name("cut.safetensors")
        cut.write_bytes(content[:length])
        assert read_arrays(cut) is None and not cut.exists()


def test_a_pipe_is_ignored_and_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    assert read_arrays(tmp_path / "pipe") is None
    assert (tmp_path / "pipe").exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'pipe'} is no regular file and is ignored"
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_ignored(path: Path) -> None:
    os.chown(path, 65534, 65534)
    assert read_arrays(path, "key") is None
    assert path.exists()


SERIALIZED = """
import sys
import numpy as np
from compressor.artifacts.checked_arrays import serialize_arrays
metadata = {f"key {number} ä": str(number) for number in range(9)}
sys.stdout.buffer.writelines(serialize_arrays({name: np.arange(3) for name in "cab"}, metadata))
"""


def test_equal_arrays_are_equal_bytes_in_every_process() -> None:
    written = [
        subprocess.run(
            [sys.executable, "-c", SERIALIZED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert written[0] == written[1]
    header = json.loads(written[0][8 : 8 + int.from_bytes(written[0][:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    loaded = safetensors.numpy.load(written[0])
    assert all(np.array_equal(loaded[name], np.arange(3)) for name in "cab")
