"""model.gguf: one file for llama.cpp and what is built on it, with integers in its own blocks.

The package `gguf`, which writes it, is needed only where such a file is asked for.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from compressor.contracts import QuantizedMatrix
from compressor.errors import ConfigError
from compressor.export.folder import Exported
from compressor.models import Model

PACKAGES = ("gguf", "accelerate")
"""What writes the file, and what transformers wants besides to read it."""


def check_gguf(model: Model) -> None:
    """Raises ConfigError where a package is missing, or where the model cannot be written as such a file."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"`export.gguf=true` needs the package {missing[0]}: pip install 'compressor[gguf]'")
    from compressor.export.gguf.saving import find_obstacle

    if reason := find_obstacle(model):
        raise ConfigError(f"`export.gguf=true` is not for {model.folder}: {reason}; leave it out")


def save_gguf(model: Model, path: Path, quantized: Mapping[str, QuantizedMatrix | None]) -> Exported:
    """Write `model`, which `check_gguf` accepts, to the file `path`; `quantized` as `export.save` takes them."""
    from compressor.export.gguf.saving import save

    return save(model, path, quantized)
