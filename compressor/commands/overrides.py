"""Configuration keys and values as Hydra's overrides: from keyword arguments of Python, and from a recorded config."""

import enum
import math
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from compressor.errors import ConfigError
from compressor.registry import escape

NAMED = ("metric", "compressor")
"""Groups whose value is name -> options, so that a mapping chooses as well as sets."""
DEEPEST = 20
"""Levels of mappings and lists inside one another; the settings have four."""
SINGLE, OPTIONAL = ("schedule", "recovery"), ("recovery",)
"""Groups whose value holds its name among its options, and those that may be None, which is the choice `none`."""


def write_overrides(options: Mapping[str, Any], groups: Collection[str], prefix: str = "") -> Iterator[str]:
    """An override for every option: `group=choice` or `key=value`; nested mappings are dotted keys.

    >>> list(write_overrides({"model": "hf", "data": {"seed": 1}, "compressor": {"int8": {"group": 64}}}, GROUPS))
    ['model=hf', 'data.seed=1', 'compressor=[int8]', 'compressor.int8.group=64']

    Raises ConfigError for a value that no configuration can hold.
    """
    for name, value in options.items():
        key = f"{prefix}{name}"
        if not isinstance(name, str):
            raise ConfigError(f"the name of an option must be a text, got {name!r:.60} in `{key:.60}`; correct it")
        if key.count(".") > DEEPEST:
            raise refuse_depth(key)
        if value is None and key in OPTIONAL and key in groups:
            yield f"{key}=none"
            continue
        if not isinstance(value, Mapping):
            yield f"{key}={write_value(key, value)}"
            continue
        nested = dict(value)
        if key in NAMED and key in groups:
            check_named(key, nested)
            yield f"{key}={write_value(key, list(nested))}"
        elif key in SINGLE and key in groups and "name" in nested:
            yield f"{key}={write_value(key, nested.pop('name'))}"
        yield from write_overrides(nested, groups, f"{key}.")


def check_named(key: str, value: Mapping[str, Any]) -> None:
    """Raise ConfigError where a mapping of names to options is something else."""
    for name, options in value.items():
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"`{key}` must be a name, a list of names or {{name: {{option: value}}}}, got {options!r:.60} for "
                f"{name!r}; an option alone is {{'{key}.{name}': value}}"
            )


def refuse_depth(key: str) -> ConfigError:
    """The error for a value that contains itself, or has more levels than any setting."""
    return ConfigError(
        f"`{key.partition('.')[0]}` has more than {DEEPEST} levels of values in values, and may not contain itself; "
        "give plain values"
    )


def write_value(key: str, value: object, depth: int = 0) -> str:
    """`value` in Hydra's grammar, such that it reads back as it is; raises ConfigError where it cannot be written."""
    if depth > DEEPEST:
        raise refuse_depth(key)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return write_text(value.name)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        number = float(value)
        return repr(number) if math.isfinite(number) else str(number)
    if isinstance(value, str | os.PathLike):
        return write_text(os.fspath(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(write_value(key, item, depth + 1) for item in value)}]"
    if isinstance(value, Mapping):
        raise ConfigError(f"`{key}` must not hold a mapping in a list, got {value!r:.60}; give plain values")
    raise ConfigError(
        f"`{key}` must be a number, a text, a list of these or None, got {type(value).__name__}; give a name and its "
        "options, or pass a Settings object, which holds instances"
    )


def write_text(text: str) -> str:
    """As it is where Hydra reads it back so, else in quotes."""
    return text if reads_back(text) else quote(text)


def reads_back(text: str) -> bool:
    """Is `text` the same text in Hydra's grammar, as a value and in a list?"""
    if "${" in text or not re.fullmatch(r"\S+", text):
        return False
    try:
        (override,) = OverridesParser.create().parse_overrides([f"key=[{text}]"])
    except HydraException:
        return False
    value = override.value()
    return isinstance(value, list) and len(value) == 1 and type(value[0]) is str and value[0] == text


def quote(text: str, mark: Quote = Quote.single) -> str:
    """`text` in quotes of Hydra's grammar, what OmegaConf would interpolate taken literally."""
    quoted: str = QuotedString(escape(text), mark).with_quotes()
    return quoted


def write_for_shell(key: str, text: str) -> str:
    """The override as it is typed on a command line so that the key gets exactly this text."""
    return shlex.quote(f"{key}={quote(text, Quote.double)}")
