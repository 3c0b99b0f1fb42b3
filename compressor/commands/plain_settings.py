"""Settings and options of plugins as plain data, as a record holds them."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from compressor.settings import Settings


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Settings like the configuration that Hydra composes; schedule and recovery have names among their options."""
    plain: dict[str, Any] = to_plain(settings)
    for group in ("schedule", "recovery"):
        if (plugin := getattr(settings, group)) is not None:
            plain[group] = {"name": plugin.name} | plain[group]
    return plain


def to_plain(value: Any) -> Any:  # noqa: ANN401 - any value of a configuration
    """Dataclasses as dicts, enums by name, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value
