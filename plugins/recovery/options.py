"""Checks of the options of recoveries."""

import math

from compressor.errors import ConfigError


def require_count(key: str, value: int, least: int = 1) -> None:
    """Raise ConfigError for a number below `least`."""
    if value < least:
        raise ConfigError(f"`recovery.{key}` must be at least {least}, got {value}; raise it")


def require_positive(key: str, value: float) -> None:
    """Raise ConfigError for a number that is not finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"`recovery.{key}` must be a finite number above 0, got {value:g}; raise it")


def require_between(key: str, value: float) -> None:
    """Raise ConfigError for a number outside of [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"`recovery.{key}` must be from 0 to 1, got {value:g}; choose another")
