"""What the machine has: memory, on the device that the model is on, and room on a disk."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")
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
    try:
        used, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
    except (psutil.Error, OSError, NotImplementedError):
        return None
    return Memory(used, max(used, read_peak()), min([used + free, *read_limits()]))


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
