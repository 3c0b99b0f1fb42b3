"""What the machine has, memory and room on a disk, and how much memory a run may use for what."""

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from compressor.errors import ConfigError

STATUS = Path("/proc/self/status")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container says how much memory it may use: in version 2 and in version 1 of cgroups."""
UNITS = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", start=1)
}


@dataclass(frozen=True)
class Memory:
    """Bytes: what this process uses now, what it has used at most, and what it can have in all."""

    used: int
    peak: int
    available: int


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that a run may use, on the model's `device` and on the `host`, and the shares of what it stores in them.

    A share decides only how work is divided, or what is computed again. Limits that decide the shape of a batch or the
    order of a sum are constants where they are used: with them, rounding depends on them, and with rounding the result.
    """

    device: int = 16 << 30
    host: int = 32 << 30

    @property
    def calibration_pass(self) -> int:
        """On the device: calibration data that one forward pass gathers."""
        return self.device // 16

    @property
    def compressed_weights(self) -> int:
        """On the device: compressed weights of a round, kept for its later trials."""
        return self.device // 16

    @property
    def calibration(self) -> int:
        """On the host: gathered calibration data; the rest goes to disk."""
        return self.host // 8

    @property
    def hidden_states(self) -> int:
        """On the host: hidden states of trials of a streamed model; the rest goes to disk."""
        return self.host // 8

    def limit(self, memory: Memory | None) -> Memory | None:
        """`memory` of the device, of which this process can have no more than the budget."""
        return memory and replace(memory, available=min(memory.available, self.device))


def make_budget(device: torch.device, on_device: int | None = None, on_host: int | None = None) -> MemoryBudget:
    """The budget of a model on `device`, by default all that the machine has; the memory of a CPU is the host's."""
    default = MemoryBudget()
    host = on_host or min([read_total() or default.host, *read_limits()])
    if device.type == "cuda":
        return MemoryBudget(on_device or torch.cuda.mem_get_info(device)[1], host)
    return MemoryBudget(on_device or host, host)


def parse_bytes(key: str, value: int | str | None) -> int | None:
    """The bytes that a setting says, as a number or as text such as 40GiB or 1.5 GB; None stays None.

    Raises ConfigError that names the `key`.
    """
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", str(value).strip())
    units = {unit.lower(): size for unit, size in UNITS.items()}
    unit = (found[2].lower() or "b") if found else ""
    size = int(float(found[1]) * units[unit]) if found and unit in units else 0
    if size < 1:
        raise ConfigError(f"`{key}` must be a number of bytes, or text such as 40GiB or 1.5GB, got {str(value)!r:.60}")
    return size


def read_memory(device: torch.device) -> Memory | None:
    """Memory of a GPU, or of the machine; None where the system does not say."""
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device), available)
    try:
        used, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    except (psutil.Error, OSError, NotImplementedError):
        return None
    return Memory(used, max(used, read_peak()), min([used + free, *read_limits()]))


def read_total() -> int | None:
    """Bytes of the machine's memory; None where the system does not say."""
    try:
        return int(psutil.virtual_memory().total)
    except (psutil.Error, OSError, NotImplementedError):
        return None


def read_peak() -> int:
    """The most bytes that this process has used; 0 where the system is not Linux. psutil does not know it there."""
    with suppress(OSError, ValueError):
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def read_limits() -> list[int]:
    """Bytes that the container's limits allow; empty where there are none."""
    found = []
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # version 2 says "max" for no limit
            found.append(int(path.read_text(encoding="ascii")))
    return found


def read_free_disk(folder: Path) -> int:
    """Bytes that may still be written to `folder`."""
    return shutil.disk_usage(folder).free


def measure_folder(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
