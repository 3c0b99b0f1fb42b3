"""Plugins that break one promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def broken(base: type, **members: object) -> Any:  # noqa: ANN401 - whatever `base` makes
    """An instance of a dataclass that derives from `base` and breaks something."""
    return dataclass(type("Broken", (base,), members))()
