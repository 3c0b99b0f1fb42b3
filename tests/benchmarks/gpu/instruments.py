"""Measures one piece of work: seconds and, on a GPU, peak memory, synchronisations and kernels."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def synchronise() -> None:
    """Wait until the GPU has finished everything that was launched."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Clock:
    """Seconds of the block, including all work that it launched on the GPU, and its peak of allocated GPU memory."""

    seconds: float
    peak_bytes: int | None = None

    def __enter__(self) -> "Clock":
        synchronise()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        synchronise()
        self.seconds = time.perf_counter() - self._began
        if torch.cuda.is_initialized():
            self.peak_bytes = torch.cuda.max_memory_allocated()

    def facts(self) -> dict[str, Any]:
        """Both figures, with their units."""
        memory = {} if self.peak_bytes is None else {"peak GiB": self.peak_bytes / 2**30}
        return {"seconds": self.seconds, **memory}


def measure_seconds(work: Work, runs: int = 3, seconds: float = 1.0) -> float:
    """The fastest of several runs after a warm-up: at least `runs` of them, and up to 50 while `seconds` last."""
    work()
    found: list[float] = []
    while len(found) < runs or (sum(found) < seconds and len(found) < 50):
        with Clock() as clock:
            work()
        found.append(clock.seconds)
    return min(found)


def count_synchronisations(work: Work) -> dict[str, Any]:
    """How often the host waits for the GPU as far as torch can see it, and the lines of code that do so most often."""
    if not torch.cuda.is_initialized():
        work()
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(
        f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
        for warning in caught
        if "synchronizing" in str(warning.message)
    )
    return {"synchronisations": lines.total(), "at": dict(lines.most_common(8))}


def count_kernels(work: Work) -> dict[str, Any]:
    """How many kernels and copies the GPU runs, and the share of the time in which it is busy, by torch's profiler."""
    if not torch.cuda.is_initialized():
        work()
        return {}
    work()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler, Clock() as clock:
        work()
    kernels = [event for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return {"kernels": len(kernels), "GPU seconds": busy, "busy share": busy / clock.seconds}
