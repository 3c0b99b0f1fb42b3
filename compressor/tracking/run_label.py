"""The name and the group under which a tracker shows a run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 128
"""The largest number of characters of a name or a group in Weights & Biases."""


@dataclass(frozen=True)
class RunLabel:
    """A run's name, and the group that it shares with the other jobs of its multirun; None for a single run."""

    name: str
    group: str | None = None


def make_label(overrides: Sequence[str], varied: Collection[str], fallback: str, folder: Path | None) -> RunLabel:
    """Name a run after the settings that tell it from others.

    `overrides` are those of the run, as `key=value`. In a multirun, `varied` are the keys that differ from job to job,
    and only these are in the name; `folder` is that of the multirun, None for a single run. Without overrides the name
    is `fallback`.
    """
    differing = [override for override in overrides if override.partition("=")[0].lstrip("+~") in varied]
    name = " ".join(_shorten_path(override) for override in differing or overrides) or fallback
    group = None if folder is None else "/".join(folder.parts[-2:])
    return RunLabel(_shorten(name), None if group is None else _shorten(group))


def _shorten_path(override: str) -> str:
    """Of a value that is a path, only the last part: where it lies differs from machine to machine."""
    key, equals, value = override.partition("=")
    plain = value.strip("'\"")
    return f"{key}{equals}{Path(plain).name}" if plain.startswith(("/", "~", "./", "../")) else override


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
