"""The device and the dtype of a model."""

from __future__ import annotations

import torch

from compressor.errors import ConfigError
from compressor.settings import DType


def choose_device(wanted: str | torch.device, option: str) -> torch.device:
    """The wanted device; raises ConfigError, with the name of the option, if it is not available."""
    available = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"`{option}` must be auto, cpu, cuda or cuda:1, got {str(wanted)!r}")
    if device.type == "cuda" and not (available and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"`{option}` is {wanted}, and torch finds no such CUDA device; use cpu or auto")
    return device


def choose_dtype(wanted: DType, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The wanted dtype; for `auto`, the checkpoint's on a GPU and float32 on a CPU."""
    if wanted is not DType.auto:
        dtype: torch.dtype = getattr(torch, wanted.value)
        return dtype
    return torch.float32 if device.type == "cpu" else stored
