"""What the machine has: memory, on the device that the model is on, and room on a disk."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, MEMORY = Path("/proc/self/status"), Path("/proc/meminfo")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container says how much memory it may use: in version 2 and in version 1 of cgroups."""


@dataclass(frozen=True)
class Memory:
    """Bytes: what this process uses now, what it has used at most, and what it can have in all."""

    used: int
    peak: int
    available: int


def read_memory(device: torch.device) -> Memory | None:
    """Memory of a GPU, or of the machine; None where the system does not say."""
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device), available)
    used, peak, free = read_size(STATUS, "VmRSS"), read_size(STATUS, "VmHWM"), read_size(MEMORY, "MemAvailable")
    if used is None or free is None:
        return None
    return Memory(used, max(used, peak or 0), min([used + free, *read_limits()]))


def read_size(path: Path, name: str) -> int | None:
    """Bytes from a line `name: 12 kB` of a file of Linux; None where there is no such line."""
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None


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
