"""Checks of the options of recoveries."""

import math
from collections.abc import Mapping

from compressor.errors import ConfigError


def require_count(key: str, value: int, least: int = 1) -> None:
    """Raise ConfigError for a number below `least`."""
    if value < least:
        raise ConfigError(f"`recovery.{key}` must be at least {least}, got {value}; raise it")


def require_positive(key: str, value: float) -> None:
    """Raise ConfigError for a number that is not finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"`recovery.{key}` must be a finite number above 0, got {value:g}; give one")


def require_between(key: str, value: float) -> None:
    """Raise ConfigError for a number outside of [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"`recovery.{key}` must be from 0 to 1, got {value:g}; choose another")


def require_one_source(path: str | None, dataset: str | None) -> None:
    """Raise ConfigError where both a file and a data set are given, or an empty name of one."""
    for key, name in (("path", path), ("dataset", dataset)):
        if name == "":
            raise ConfigError(f"`recovery.{key}` must not be empty; give a name, or leave it out")
    if path is not None and dataset is not None:
        raise ConfigError(
            f"`recovery.path` and `recovery.dataset` exclude each other, got {path} and {dataset}; drop one"
        )


def list_unused_parts(dataset: str | None) -> Mapping[str, str]:
    """The options that say which part of a data set is read, if there is none."""
    return {} if dataset is not None else {"subset": "dataset", "split": "dataset"}
