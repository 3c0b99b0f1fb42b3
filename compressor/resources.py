"""Memory and disk space of the machine, and the memory budget of a run."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from compressor.errors import ConfigError

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the memory limit of a container, in version 2 and version 1 of cgroups."""
UNITS = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", start=1)
}

NO_MEMORY = re.compile(
    "out of memory|not enough memory|(can't|cannot|failed to|unable to) allocate|bad_alloc|start new thread", re.I
)
"""Messages of torch, of CUDA and of the C++ and Python libraries, which all use a RuntimeError for a lack of memory."""
LARGEST = 2.0**60
"""Bytes that no machine has."""


@dataclass(frozen=True)
class Memory:
    """Bytes that this process uses now, the most that it has used, and the most that it can use."""

    used: int
    peak: int
    available: int


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that a run may use on the model's `device` and on the `host`, and their division between kinds of data.

    The division only decides how work is split, or what is computed again. Limits that change the shape of a batch or
    the order of a sum are constants in the modules that use them, because rounding and so results depend on them.
    `setting` is the key that limits `device`, None where only the machine does.
    """

    device: int = 16 << 30
    host: int = 32 << 30
    setting: str | None = field(default=None, compare=False)

    @property
    def calibration_pass(self) -> int:
        """On the device: calibration data that are gathered in one forward pass."""
        return self.device // 16

    @property
    def compressed_weights(self) -> int:
        """On the device: compressed weights that are kept for later trials of the round."""
        return self.device // 16

    @property
    def calibration(self) -> int:
        """On the host: gathered calibration data; the rest is on disk."""
        return self.host // 8

    @property
    def hidden_states(self) -> int:
        """On the host: hidden states of trials of a streamed model; the rest is on disk."""
        return self.host // 8

    def limit(self, memory: Memory | None) -> Memory | None:
        """`memory` of the device, with `available` limited to the budget."""
        return memory and replace(memory, available=min(memory.available, self.device))


def make_budget(device: torch.device, on_device: int | None = None, on_host: int | None = None) -> MemoryBudget:
    """The budget of a model on `device`, by default all memory of the machine. The memory of a CPU is the host's."""
    default = MemoryBudget()
    host = on_host or min([read_total() or default.host, *read_limits()])
    setting = "memory.device" if on_device else "memory.host" if on_host and device.type != "cuda" else None
    if device.type == "cuda":
        import torch

        return MemoryBudget(on_device or torch.cuda.mem_get_info(device)[1], host, setting)
    return MemoryBudget(on_device or host, host, setting)


def parse_bytes(key: str, value: int | str | None) -> int | None:
    """A setting in bytes, given as a number or as text such as 40GiB or 1.5 GB; None stays None.

    Raises ConfigError that names the `key`.
    """
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", str(value).strip())
    units = {unit.lower(): size for unit, size in UNITS.items()}
    unit = (found[2].lower() or "b") if found else ""
    size = float(found[1]) * units[unit] if found and unit in units else 0.0
    if not 1 <= size <= LARGEST:
        raise ConfigError(
            f"`{key}` must be a number of bytes, or text such as 40GiB or 1.5GB, got {str(value)!r:.60}; leave it out "
            "for all memory of the machine"
        )
    return int(size)


def read_memory(device: torch.device) -> Memory | None:
    """Memory of a GPU, or of the machine; None if it cannot be read."""
    if device.type == "cuda":
        import torch

        available = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device), available)
    return read_host_memory()


def read_host_memory() -> Memory | None:
    """Memory of the machine; None if it cannot be read."""
    try:
        used, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    except (psutil.Error, OSError, NotImplementedError):  # the last on systems that psutil does not know
        return None
    return Memory(used, max(used, read_peak()), min([used + free, *read_limits()]))


def read_total() -> int | None:
    """Bytes of the machine's memory; None if it cannot be read."""
    try:
        return int(psutil.virtual_memory().total)
    except (psutil.Error, OSError, NotImplementedError):
        return None


def read_peak() -> int:
    """The most bytes that this process has used; 0 if the system is not Linux. psutil has no such value on Linux."""
    with suppress(OSError, ValueError):
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def read_limits() -> list[int]:
    """The container's memory limits in bytes; empty if there are none."""
    found = []
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # in version 2, "max" means no limit
            found.append(int(path.read_text(encoding="ascii")))
    return found


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or the device has no memory left."""
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


def measure_folder(folder: Path) -> int:
    """Bytes of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_processor() -> str:
    """The name of the CPU type: kernels, and so roundings, depend on it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
