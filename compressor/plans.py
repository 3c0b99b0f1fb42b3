"""plan.json, read and written: component -> treatment. A file that is not a plan gives one line, whatever is in it."""

import enum
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from compressor.errors import PlanError, suggest
from compressor.values import Plan, Treatment

KEYS = tuple(f.name for f in fields(Treatment))
SHAPE = 'a plan is {component: {"compressor": name, "amount": number, "options": {…}}}'

short = reprlib.Repr()
"""Quotes what a file says: one printable line, cut where it is long."""
short.maxstring = short.maxother = 80


class _Wrong(Exception):
    """What is wrong inside a file; the reader adds which file."""


def plan_to_json(plan: Plan) -> dict[str, dict[str, Any]]:
    """The plan as plain data for `json.dump`; `read_plan` gives it back."""
    return {
        name: {
            "compressor": treatment.compressor,
            "amount": float(treatment.amount),
            "options": {option: _to_plain(value) for option, value in treatment.options.items()},
        }
        for name, treatment in plan.items()
    }


def read_plan(path: str | Path) -> dict[str, Treatment]:
    """The plan in a JSON file, options as they are there; raises PlanError."""
    where = f"plan {short.repr(str(path))}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PlanError(f"{where} is not a text file; {SHAPE}") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise PlanError(f"{where} cannot be read: {reason}; give the path of a plan.json") from None
    try:
        return _to_plan(
            json.loads(text, object_pairs_hook=_to_object, parse_float=_to_float, parse_constant=_refuse_constant)
        )
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{where} is not JSON: {error.msg} at line {error.lineno} column {error.colno}; {SHAPE}"
        ) from None
    except RecursionError:
        raise PlanError(f"{where} is nested too deeply; {SHAPE}") from None
    except (_Wrong, PlanError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise PlanError(f"{where}: {error}") from None


def _to_plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.name
    return list(map(_to_plain, value)) if isinstance(value, list | tuple) else value


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _Wrong(f"{short.repr(double)} is given twice; keep one of them")
    return result


def _to_float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise _Wrong(f"{short.repr(digits)} is too large; give a smaller number")
    return value


def _refuse_constant(constant: str) -> None:
    raise _Wrong(f"{constant} is not a number that JSON knows; give a finite one")


def _to_plan(data: object) -> dict[str, Treatment]:
    if not isinstance(data, dict):
        raise _Wrong(f"got {short.repr(data)}; {SHAPE}")
    return {name: _to_treatment(f"component {short.repr(name)}", value) for name, value in data.items()}


def _to_treatment(where: str, data: object) -> Treatment:
    if not isinstance(data, dict):
        raise _Wrong(f"{where} is {short.repr(data)}; {SHAPE}")
    for key in data:
        if key not in KEYS:
            raise _Wrong(f"{where} has the key {short.repr(key)}; {suggest(key, KEYS)}")
    for key in ("compressor", "amount"):
        if key not in data:
            raise _Wrong(f"{where} lacks `{key}`; {SHAPE}")
    compressor, amount, options = data["compressor"], data["amount"], data.get("options", {})
    if not (isinstance(compressor, str) and re.fullmatch(r"[a-z][a-z0-9_]*", compressor)):
        raise _Wrong(f"`compressor` of {where} must be a name in lower case, got {short.repr(compressor)}")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount <= 1:
        raise _Wrong(f"`amount` of {where} must be a number in [0, 1], got {short.repr(amount)}")
    return Treatment(compressor, float(amount), _to_options(where, options))


def _to_options(where: str, data: object) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise _Wrong(f"`options` of {where} must be an object, got {short.repr(data)}; name the compressor's fields")
    for name, value in data.items():
        if not all(item is None or isinstance(item, str | int | float) for item in _items(value)):
            raise _Wrong(
                f"option {short.repr(name)} of {where} must be a value or a list of values, got {short.repr(value)}"
            )
    return data


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
