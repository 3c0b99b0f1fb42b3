"""Builds dataclasses from plain JSON data; each field is checked against its annotation.

It does not use pydantic, which refuses text that is not valid Unicode (a path in a configuration) and has no rule for a
null that stands for NaN. This project writes files with both.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def rebuild(cls: type[T], data: object, place: str = "") -> T:
    """An instance of the dataclass `cls`. Unknown fields are ignored, and a null where a float belongs becomes NaN.

    Raises TypeError or ValueError with one line that names the field, the rule and the value.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{f'`{place}`' if place else 'the whole'} must be an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(typing.cast(Any, cls)):
        where = f"{place}.{field.name}".lstrip(".")
        if field.name in data:
            values[field.name] = _check(hints[field.name], data[field.name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"`{where}` is missing")
    return cls(**values)


def _check(hint: Any, value: Any, place: str) -> Any:  # noqa: ANN401 - by annotation
    """`value` converted to the annotation `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        # Only "or None" occurs in a record.
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _check(inner, value, place)
    if dataclasses.is_dataclass(hint):
        return rebuild(typing.cast(type[Any], hint), value, place)
    if origin is dict and isinstance(value, Mapping):
        return {key: _check(arguments[1], item, f"{place}.{_quote(key)}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_check(arguments[0], item, f"{place}.{index}") for index, item in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(_check(kind, item, place) for kind, item in zip(arguments, value, strict=True))
    if hint is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else _to_float(value, place)
    if type(value) is hint:
        return value
    name = hint.__name__ if isinstance(hint, type) else hint
    raise TypeError(f"`{place}` must be {name}, got {value!r:.60}")


def _to_float(value: float, place: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"`{place}` must be float, got an integer that is too large for one") from None


def _quote(key: str) -> str:
    """A key of a file for a message of one line."""
    return key if key.isprintable() else repr(key)
