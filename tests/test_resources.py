"""What the machine has: memory of the process, limits of containers, room on a disk."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from compressor import resources
from compressor.errors import ConfigError
from compressor.resources import Memory, MemoryBudget, make_budget, parse_bytes

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
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * 1024, total=900 * 1024))
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


def test_a_budget_is_what_the_machine_has(machine: Path) -> None:
    assert make_budget(CPU) == MemoryBudget(900 * 1024, 900 * 1024)
    (machine / "memory.max").write_text("409600\n")
    assert make_budget(CPU) == MemoryBudget(409600, 409600)


def test_a_budget_is_what_is_given(machine: Path) -> None:
    assert make_budget(CPU, on_host=1000) == MemoryBudget(1000, 1000)
    settings = [make_budget(CPU, *given).setting for given in ((None, None), (9, None), (None, 9), (9, 9))]
    assert settings == [None, "memory.device", "memory.host", "memory.device"]
    assert make_budget(CPU, on_device=1000) == MemoryBudget(1000, 900 * 1024)
    assert make_budget(CPU, 10**9, 10**10) == MemoryBudget(10**9, 10**10)


def test_a_gpu_has_a_memory_of_its_own(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 80 << 30))
    assert make_budget(torch.device("cuda")) == MemoryBudget(80 << 30, 900 * 1024)
    assert make_budget(torch.device("cuda"), 40 << 30) == MemoryBudget(40 << 30, 900 * 1024)


def test_a_machine_that_does_not_say_has_the_usual_budget(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert make_budget(CPU) == MemoryBudget(MemoryBudget().host, MemoryBudget().host)


def test_shares_leave_most_of_the_memory_to_the_model() -> None:
    budget = MemoryBudget(1600, 3200)
    assert budget.calibration_pass + budget.compressed_weights == 200
    assert budget.calibration + budget.hidden_states == 800


def test_a_process_cannot_have_more_than_its_budget() -> None:
    budget = MemoryBudget(device=100)
    assert budget.limit(Memory(10, 20, 300)) == Memory(10, 20, 100)
    assert budget.limit(Memory(10, 20, 30)) == Memory(10, 20, 30)
    assert budget.limit(None) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (12, 12),
        ("12", 12),
        ("12B", 12),
        ("40GiB", 40 << 30),
        ("1.5 GB", 1_500_000_000),
        ("0.5TiB", 1 << 39),
        ("3kB", 3000),
        ("3KiB", 3072),
        ("7mb", 7_000_000),
        (None, None),
    ],
)
def test_bytes_are_read_as_people_write_them(text: int | str | None, size: int | None) -> None:
    assert parse_bytes("memory.host", text) == size


@pytest.mark.parametrize(
    "text", ["", "many", "40 G", "GiB", "-1", -1, 0, "0GB", "1e9", "1,5GB", "nan", "inf", True, 10**400, "9999999TiB"]
)
def test_bytes_that_cannot_be_read_are_one_line(text: int | str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes("memory.host", text)
    assert str(caught.value) == (
        f"`memory.host` must be a number of bytes, or text such as 40GiB or 1.5GB, got {str(text)!r:.60}; leave it out "
        "for all memory of the machine"
    )


def test_this_machine_has_memory_and_a_disk(tmp_path: Path) -> None:
    found = resources.read_memory(CPU)
    assert found is not None and 0 < found.used <= found.peak and found.used < found.available
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"12345")
    assert resources.measure_folder(tmp_path) == 5
