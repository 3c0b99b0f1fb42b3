"""The machine: its versions, and how fast it multiplies, copies, launches and synchronises at best."""

import os
import sys
from collections.abc import Iterator

import torch
import transformers

from .instruments import Clock, measure_seconds
from .runner import Result

Peaks = dict[str, float]
"""Operations per second of a large product by dtype name, and bytes per second of a copy on the device as `copy`."""


def check_machine(device: torch.device, small: bool, peaks: Peaks) -> Iterator[Result]:
    """Fill in `peaks`; float32 products must not be rounded to TF32."""
    yield Result(
        True,
        {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cores": os.cpu_count(),
        },
        "versions",
    )
    width = 1024 if small else 8192
    for dtype in (torch.bfloat16, torch.float32):
        first, second = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
        peaks[str(dtype).removeprefix("torch.")] = 2 * width**3 / measure_seconds(lambda a=first, b=second: a @ b)
    source = torch.zeros(1 << (24 if small else 31), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    peaks["copy"] = 2 * source.nbytes / measure_seconds(lambda: target.copy_(source))
    speeds = {f"{name} TFLOP/s": peaks[name] / 1e12 for name in ("bfloat16", "float32")}
    yield Result(True, {**speeds, "copy TB/s": peaks["copy"] / 1e12}, "peak")
    if device.type == "cuda":
        yield from check_gpu(device)


def check_gpu(device: torch.device) -> Iterator[Result]:
    """What only a GPU has."""
    found = torch.cuda.get_device_properties(device)
    facts = {"name": found.name, "GiB": found.total_memory / 2**30, "GPUs": torch.cuda.device_count()}
    facts |= {"cuda": torch.version.cuda, "TF32": torch.backends.cuda.matmul.allow_tf32}
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    yield Result(not facts["TF32"], {**facts, "bfloat16 sums": str(reduced)}, "GPU")
    on_host = torch.empty(1 << 28, dtype=torch.uint8)
    on_device = on_host.to(device)
    to_host = on_host.nbytes / measure_seconds(lambda: on_host.copy_(on_device))
    to_device = on_host.nbytes / measure_seconds(lambda: on_device.copy_(on_host))
    number = torch.zeros(1, device=device)
    with Clock() as launches:
        for _ in range(2000):
            number.add_(1)
    with Clock() as synchronisations:
        for _ in range(500):
            number.item()
    facts = {"GB/s to the host": to_host / 1e9, "GB/s to the device": to_device / 1e9}
    facts |= {"launch µs": launches.seconds / 2000 * 1e6, "synchronisation µs": synchronisations.seconds / 500 * 1e6}
    yield Result(True, facts, "host and device")
