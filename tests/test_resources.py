"""What the machine has: memory of the process, limits of containers, room on a disk."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from compressor import resources
from compressor.resources import Memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process that uses 200 kB, and used 300, on a machine where 500 kB are free; no container limits it.

    Gives the folder of the files that limits are read from.
    """
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    300 kB\nVmRSS:\t    200 kB\n")
    monkeypatch.setattr(resources, "STATUS", tmp_path / "status")
    monkeypatch.setattr(resources, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"))
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=200 * 1024))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * 1024))
    return tmp_path


def test_memory_is_that_of_process_and_machine(machine: Path) -> None:
    assert resources.read_memory(CPU) == Memory(200 * 1024, 300 * 1024, 700 * 1024)
    (machine / "status").unlink()
    assert resources.read_memory(CPU) == Memory(200 * 1024, 200 * 1024, 700 * 1024)


@pytest.mark.parametrize("name", ["memory.max", "memory.limit_in_bytes"])
def test_a_container_limits_memory(name: str, machine: Path) -> None:
    (machine / name).write_text("max\n")
    assert resources.read_memory(CPU) == Memory(200 * 1024, 300 * 1024, 700 * 1024)
    (machine / name).write_text("409600\n")
    assert resources.read_memory(CPU) == Memory(200 * 1024, 300 * 1024, 400 * 1024)
    (machine / name).write_text(f"{2**63 - 4096}\n")
    assert resources.read_memory(CPU) == Memory(200 * 1024, 300 * 1024, 700 * 1024)


def test_memory_is_not_known_where_the_system_does_not_say(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert resources.read_memory(CPU) is None


def test_this_machine_has_memory_and_a_disk(tmp_path: Path) -> None:
    found = resources.read_memory(CPU)
    assert found is not None and 0 < found.used <= found.peak and found.used < found.available
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"12345")
    assert resources.measure_folder(tmp_path) == 5 and resources.read_free_disk(tmp_path) > 0
