"""Plugins that break one promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def broken(base: type, **members: object) -> Any:  # noqa: ANN401 - whatever `base` makes
    """An instance of a dataclass that derives from `base` and breaks something."""
    return dataclass(type("Broken", (base,), members))()


def list_tests(suite: type) -> set[str]:
    """The promises that a contract suite has a test for."""
    return {name.removeprefix("test_") for name in dir(suite) if name.startswith("test_")}
