"""model.gguf: one file for llama.cpp and programs based on it, with integers in GGUF blocks.

The package `gguf`, which writes it, is only needed with `export.gguf=true`.
"""

import importlib.util

from compressor.errors import ConfigError
from compressor.models import Model

PACKAGES = ("gguf", "accelerate")
"""The package that writes the file, and the one that transformers also needs to read it."""


def check_gguf(model: Model) -> None:
    """Raises ConfigError if a package is missing, or if the model cannot be written as a GGUF file."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"`export.gguf=true` needs the package {missing[0]}: pip install 'compressor[gguf]'")
    from compressor.export.gguf.saving import find_obstacle

    if reason := find_obstacle(model):
        raise ConfigError(f"`export.gguf=true` is not possible for {model.folder}: {reason}; leave it out")
