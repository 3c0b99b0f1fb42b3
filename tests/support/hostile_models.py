"""Folders of models that somebody has damaged or changed, and how to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from compressor.errors import CompressorError


def edit_config(folder: Path, **values: Any) -> None:  # noqa: ANN401 - any config value
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "our_own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def corrupt_file(path: Path) -> None:
    """Turn a stretch of the weights over, not the header."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(255 - byte for byte in content[middle : middle + 4096])
    path.write_bytes(content)


def assert_one_line(error: BaseException) -> None:
    assert isinstance(error, CompressorError) and "\n" not in str(error) and len(str(error)) < 700


def describe(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change `quantization_config` of the folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def set_weights(**values: object) -> Callable[[dict[str, Any]], None]:
    def change(described: dict[str, Any]) -> None:
        described["config_groups"]["group_0"]["weights"].update(values)

    return change


def set_group(**values: object) -> Callable[[dict[str, Any]], None]:
    def change(described: dict[str, Any]) -> None:
        described["config_groups"]["group_0"].update(values)

    return change


def set_all(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda described: described.update(values)


def rewrite(folder: Path, change: Callable[[str, Tensor], Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in safetensors.torch.load_file(path).items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, path, {"format": "pt"})
