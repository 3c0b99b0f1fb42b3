"""Writes the compressed model as a folder that transformers loads, whole or not at all."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from compressor.errors import ConfigError, OutputError, suggest
from compressor.files import write_json
from compressor.models import Model
from compressor.models.loading import quiet_loading
from compressor.plans import ROWS_FILE, plan_to_json, write_rows
from compressor.values import Plan

FORMATS = ("dense",)
ROWS_PATH = f"compression/{ROWS_FILE}"
"""In a folder of its own: some readers take every *.safetensors beside config.json for weights."""


@dataclass(frozen=True)
class Exported:
    """Where the model lies, how it is stored and how many bytes its weight files have."""

    folder: Path
    dtype: torch.dtype
    bytes: int

    @property
    def bits(self) -> int:
        """Bits of one stored weight."""
        return torch.finfo(self.dtype).bits


def check_format(name: str) -> None:
    if name not in FORMATS:
        raise ConfigError(f"unknown `export.format` `{name}`; {suggest(name, FORMATS)}")


def choose_dtype(model: Model) -> torch.dtype:
    """The checkpoint's stored dtype if it holds every weight exactly, else the dtype that was scored."""
    stored = model.stored_dtype
    if all(holds_exactly(stored, parameter) for parameter in model.network.parameters()):
        return stored
    return model.dtype


def holds_exactly(dtype: torch.dtype, values: Tensor) -> bool:
    """Is every value also one of `dtype`?"""
    return torch.equal(values.to(dtype).to(values.dtype), values)


def cast_state(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point tensors as `dtype`; tensors that share memory go on sharing it, so that ties are still seen."""
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    result = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        result[name] = seen[key]
    return result


def save_dense(model: Model, folder: Path, plan: Plan, provenance: dict[str, Any]) -> Exported:
    """Save weights, config, generation settings, tokenizer and `compression.json` to `folder`, which is replaced.

    `compression.json` holds the plan and the `provenance`; it names the file of the plan's rows, if it has any.
    Every value is stored as it was scored: in the checkpoint's own dtype where that loses nothing.
    """
    dtype = choose_dtype(model)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        state = cast_state(model.network.state_dict(), dtype)
        with quiet_loading(model.device):
            model.network.save_pretrained(partial, state_dict=state)
        config_path = partial / "config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config["dtype"] = str(dtype).removeprefix("torch.")
        write_json(config_path, config)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(partial)
        write_rows(plan, partial / ROWS_PATH)
        write_json(partial / "compression.json", {"plan": plan_to_json(plan, ROWS_PATH), **provenance})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write the model to {folder}: {error}; free space or choose another") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Exported(folder, dtype, size)
