"""Reads and writes plan.json: component -> treatment. Every error in a file is one line for the user.

Amounts per row are stored beside it in rows.safetensors: for each component that has them, a float64 tensor `[out]` of
its name. It is not float32, because a rounded a_r could change round(a_r · in), the number of pruned weights.
"""

import enum
import hashlib
import json
import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from compressor.artifacts.files import NestedTooDeeply, parse_json, read_regular, write_bytes, write_json
from compressor.artifacts.run_files import FILES, STATUS
from compressor.contracts import Plan, Treatment
from compressor.errors import PlanError, suggest

KEYS = tuple(f.name for f in fields(Treatment))
SHAPE = 'a plan is {component: {"compressor": name, "amount": number, "options": {…}}}'
PLAN, ROWS_FILE = "plan.json", "rows.safetensors"
OTHERS = frozenset({
    *FILES, STATUS, "config.json", "compression.json", "generation_config.json", "tokenizer.json", "arguments.json",
    "tokenizer_config.json", "model.safetensors", "comparison.json",
}) - {PLAN, "forecast.json", "report.json"}  # fmt: skip
"""Files of a run, of its model or of a multirun that somebody may take for a plan."""

SAME_AMOUNT = 5.1e-4
"""Amounts that differ by less look the same as percentages with one decimal."""

short = reprlib.Repr()
"""Quotes values of a file in one printable line, shortened if they are long."""
short.maxstring = short.maxother = 80


class _Wrong(Exception):
    """An error inside a file; the reader adds the name of the file."""


def plan_to_json(plan: Plan, rows_file: str | None = None) -> dict[str, dict[str, Any]]:
    """The plan as plain data for `json.dump`; `read_plan` is the inverse.

    If a treatment has rows, `rows` is the file that holds them, which `write_rows` writes. Without a `rows_file` it is
    true: the plan then has amounts per row that cannot be read back.
    """
    return {
        name: {
            "compressor": treatment.compressor,
            "amount": float(treatment.amount),
            "options": {option: _to_plain(value) for option, value in treatment.options.items()},
        }
        | ({} if treatment.rows is None else {"rows": rows_file or True})
        for name, treatment in plan.items()
    }


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write the plan to `path`, and its rows, if it has any, to rows.safetensors beside it; raises OutputError."""
    path = Path(path)
    # Rows are written first, so that a plan never names a missing file.
    write_rows(plan, path.with_name(ROWS_FILE))
    write_json(path, plan_to_json(plan, ROWS_FILE))


def list_plan_files(plan: Plan) -> list[str]:
    """The names of the files in which a run writes the plan."""
    return [PLAN, *([ROWS_FILE] if any(treatment.rows is not None for treatment in plan.values()) else [])]


def write_rows(plan: Plan, path: Path) -> None:
    """Write the amounts per row to `path`, if the plan has any."""
    import numpy as np
    from safetensors.numpy import save

    rows = {name: np.array(t.rows, dtype=np.float64) for name, t in plan.items() if t.rows is not None}
    if rows:
        write_bytes(path, save(rows))


def read_plan(path: str | Path, depth: int | None = None, amount: float | None = None) -> dict[str, Treatment]:
    """The plan in a JSON file, with rows from the files that it names; options are not checked. Raises PlanError.

    With a `depth` the file is the report.json of a run, and the plan is the best one of its last search that treats so
    many components. With an `amount` it is a forecast.json, and the plan is that of a point of its curve.
    """
    where = f"plan {short.repr(str(path))}"
    try:
        return _read_file(Path(path), where, depth, amount)
    except PlanError:
        if depth is None and amount is None:
            _refuse_other_file(Path(path), where)
        raise


def _read_file(path: Path, where: str, depth: int | None, amount: float | None) -> dict[str, Treatment]:
    """As `read_plan`; `where` names the file in errors."""
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PlanError(f"{where} is not a text file; {SHAPE}") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise PlanError(f"{where} cannot be read: {reason}; give the path of a plan.json") from None
    try:
        data = parse_json(text, object_pairs_hook=_to_object, parse_float=_to_float, parse_constant=_refuse_constant)
        return _to_plan(_choose_plan(data, depth, amount), path.parent)
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{where} is not JSON: {error.msg} at line {error.lineno} column {error.colno}; {SHAPE}"
        ) from None
    except NestedTooDeeply:
        raise PlanError(f"{where} is nested too deeply; {SHAPE}") from None
    except (_Wrong, PlanError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise PlanError(f"{where}: {error}") from None


def _refuse_other_file(path: Path, where: str) -> None:
    """Raises PlanError for another file of a run, or its folder; names the plan of the run if it is there."""
    is_folder = os.path.isdir(path)
    if not is_folder and path.name not in OTHERS:
        return
    places = [path] if is_folder else [path.parent, path.parent.parent]
    found = next((place / PLAN for place in places if (place / PLAN).is_file()), None)
    fix = f"give {str(found)!r}" if found else f"give the {PLAN} of a run"
    raise PlanError(f"{where} is {'a folder' if is_folder else 'another file of a run'} and no plan; {fix}") from None


def hash_plan(path: Path) -> str:
    """sha256 of the file of a plan, and of the files with rows that it names. Raises OSError."""
    content = read_regular(path)
    digest = hashlib.sha256(content)
    for name in _find_rows_files(content):
        with suppress(OSError, ValueError):  # `read_plan` says what is wrong
            digest.update(read_regular(path.parent / name))
    return digest.hexdigest()


def _find_rows_files(content: bytes) -> list[str]:
    """The names that a plan gives for files with rows, sorted; none if it is no plan."""
    try:
        data = parse_json(content)
    except ValueError:
        return []
    treatments = data.values() if isinstance(data, dict) else ()
    rows = [treatment.get("rows") for treatment in treatments if isinstance(treatment, dict)]
    return sorted({name for name in rows if isinstance(name, str)})


def _choose_plan(data: object, depth: int | None, amount: float | None) -> object:
    """The plan in the data of a file."""
    if depth is not None:
        return _find_waypoint(data, depth)
    if amount is not None:
        return _find_point(data, amount)
    # A list, because a component of a plan may have either name.
    if isinstance(data, dict) and isinstance(data.get("curve"), list):
        raise _Wrong("it is a forecast with a plan for every size; choose one by schedule.amount, for example 0.5")
    if isinstance(data, dict) and isinstance(data.get("rounds"), list):
        raise _Wrong("it is the report of a run; give the plan.json beside it, or schedule.depth for a beam search")
    return data


def _find_point(data: object, amount: float) -> object:
    """The plan of the point of a forecast's curve with this mean amount, up to the decimals that tables show."""
    try:
        points = data["curve"]  # type: ignore[index]
        plans = {float(point["amount"]): point["plan"] for point in points if point["amount"] > 0}
    except (TypeError, ValueError, KeyError, OverflowError):
        raise _Wrong("it has no curve of a forecast; give the forecast.json of compressor forecast") from None
    nearest = sorted(plans, key=lambda known: abs(known - amount))
    if not nearest or not abs(nearest[0] - amount) <= SAME_AMOUNT:  # also for an amount that is NaN
        known = " and ".join(f"{near:.4g}" for near in sorted(nearest[:2])) or "none"
        raise _Wrong(f"it has no point of amount {amount:g}, the nearest are {known}; choose one of its curve")
    return plans[nearest[0]]


def _find_waypoint(data: object, depth: int) -> object:
    """The best plan of so many components in a report.json."""
    try:
        curve = data["rounds"][-1]["curve"]  # type: ignore[index]
        plans = {int(point["components"]): point["plan"] for point in curve}
    except (TypeError, ValueError, KeyError, IndexError):
        raise _Wrong("it has no curve of a search; give the report.json of a run with schedule=beam") from None
    if depth not in plans:
        known = f"from {min(plans)} to {max(plans)}" if plans else "none"
        raise _Wrong(f"it has no plan of {depth} components, only {known}; choose one of these")
    return plans[depth]


def _to_plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.name
    return list(map(_to_plain, value)) if isinstance(value, list | tuple) else value


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        double = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _Wrong(f"{short.repr(double)} is given twice; keep one of them")
    return result


def _to_float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise _Wrong(f"{short.repr(digits)} is too large; give a smaller number")
    return value


def _refuse_constant(constant: str) -> None:
    raise _Wrong(f"{constant} is not a JSON number; give a finite one")


def _to_plan(data: object, folder: Path) -> dict[str, Treatment]:
    if not isinstance(data, dict):
        raise _Wrong(f"got {short.repr(data)}; {SHAPE}")
    return {name: _to_treatment(name, value, folder) for name, value in data.items()}


def _to_treatment(name: str, data: object, folder: Path) -> Treatment:
    where = f"component {short.repr(name)}"
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
    rows = _read_rows(name, data["rows"], folder) if "rows" in data else None
    try:
        return Treatment(compressor, float(amount), _to_options(where, options), rows)
    except PlanError as error:
        raise _Wrong(f"{where}: {error}") from None


def _to_options(where: str, data: object) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise _Wrong(f"`options` of {where} must be an object, got {short.repr(data)}; name the compressor's fields")
    for name, value in data.items():
        if not all(item is None or isinstance(item, str | int | float) for item in _items(value)):
            raise _Wrong(
                f"option {short.repr(name)} of {where} must be a value or a list of values, got {short.repr(value)}"
            )
    return data


def _read_rows(name: str, file: object, folder: Path) -> tuple[float, ...]:
    """The tensor of component `name` in `file`, which must be in `folder`."""
    from safetensors import SafetensorError, safe_open

    where, what = f"`rows` of component {short.repr(name)}", short.repr(file)
    if not isinstance(file, str):
        raise _Wrong(f"{where} must be the name of a file beside the plan, got {what}; give {ROWS_FILE!r}")
    try:
        home = os.path.realpath(folder)
        path = os.path.realpath(os.path.join(home, file))
    except ValueError:
        raise _Wrong(f"{where} must be the name of a file beside the plan, got {what}; give {ROWS_FILE!r}") from None
    if not Path(path).is_relative_to(home):
        raise _Wrong(f"{where} must stay in the folder of the plan, got {what}; put the file beside the plan")
    if not os.path.isfile(path):
        raise _Wrong(f"{where} must be a file beside the plan, there is no {what}; copy it along with the plan")
    try:
        with safe_open(path, framework="numpy") as tensors:
            if name not in tensors.keys():
                raise _Wrong(f"{where} must be a tensor of that name, {what} has none; take the file of this plan")
            head = tensors.get_slice(name)
            dtype, shape = head.get_dtype(), head.get_shape()
            if dtype != "F64" or len(shape) != 1:
                raise _Wrong(
                    f"{where} must be float64 [out], got {dtype} {short.repr(shape)}; give an amount for each row"
                )
            return tuple(tensors.get_tensor(name).tolist())
    except (OSError, SafetensorError) as error:
        reason = short.repr(" ".join(str(error).split()))
        raise _Wrong(f"{where} must be a safetensors file, cannot read {what}: {reason}; copy it again") from None


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
