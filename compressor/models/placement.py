"""The device and the dtype of a model."""

from __future__ import annotations

from typing import TypeVar

import torch

from compressor.errors import ConfigError, suggest
from compressor.settings import DType

Automatic = TypeVar("Automatic")


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


def choose_dtype(wanted: DType | str | torch.dtype, option: str, automatic: Automatic) -> torch.dtype | Automatic:
    """The wanted dtype, or `automatic` for auto; raises ConfigError, with the name of the option, for others."""
    name = wanted.value if isinstance(wanted, DType) else str(wanted).removeprefix("torch.")
    if name not in DType.__members__:
        raise ConfigError(f"unknown `{option}` `{wanted}`; {suggest(name, DType.__members__)}")
    if name == DType.auto.value:
        return automatic
    dtype: torch.dtype = getattr(torch, name)
    return dtype
