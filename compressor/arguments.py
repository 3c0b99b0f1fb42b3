"""Checks of arguments of the public functions: what has another type is one line."""

import os
from pathlib import Path

from compressor.errors import ConfigError


def read_path(name: str, value: str | os.PathLike[str]) -> Path:
    """The path that an argument holds; raises ConfigError, with the name of the argument, for anything else."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str):
        raise ConfigError(f"`{name}` must be a path, got {value!r:.80}; give a text or a pathlib.Path")
    if not given:
        raise ConfigError(f"`{name}` must be a path, got ''; give one, such as '.' for the working directory")
    return Path(given)


def require_switch(name: str, value: bool) -> None:
    """Raise ConfigError, with the name of the argument, for anything that is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigError(f"`{name}` must be True or False, got {value!r:.80}; give one of these")
