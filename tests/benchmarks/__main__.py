"""`make bench`: runs every benchmark, or the one that is named, and prints a table and JSON lines.

A row may say `passed`; the exit status is 1 if that is false anywhere.
"""

import importlib
import json
import sys
from typing import Any

BENCHMARKS = (
    "demo",
    "fingerprint",
    "coverage",
    "allocation",
    "law",
    "singles",
    "estimators",
    "sensitivity",
    "sweep",
    "beam",
    "streaming",
    "quantizers",
    "rankers",
    "int8share",
    "allocators",
    "gptq",
    "loading",
    "load",
)
ON_REQUEST = ("discrimination", "gpu", "memory", "protocol", "pruners", "recoveries", "training")
"""Benchmarks that run only when they are named: they need a GPU, a text, a quiet machine, or hours."""


def format_cell(value: object) -> str:
    """A number, [value, low, high] with its interval, or names with values."""
    if isinstance(value, dict):
        cells = {name: format_cell(part) for name, part in value.items()}
        return ", ".join(
            f"{name} ({cell})" if isinstance(value[name], dict) else f"{name} {cell}" for name, cell in cells.items()
        )
    if isinstance(value, list):
        return f"{value[0]:.4g} [{value[1]:.4g}, {value[2]:.4g}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """A markdown table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [[format_cell(row[column]) if column in row else "" for column in columns] for row in rows]
    for line in ([f"# {name}", ""], columns, ["---"] * len(columns), *lines):
        text = line[0] if line[0].startswith("#") else f"| {' | '.join(line)} |"
        print(text, file=sys.stderr)


def main() -> None:
    chosen, arguments = (sys.argv[1:2], sys.argv[2:]) if len(sys.argv) > 1 else (list(BENCHMARKS), [])
    failed = False
    for name in chosen:
        if name not in BENCHMARKS + ON_REQUEST:
            raise SystemExit(f"unknown benchmark {name}; known: {', '.join(BENCHMARKS + ON_REQUEST)}")
        rows = []
        for row in importlib.import_module(f"tests.benchmarks.{name}").measure(arguments):
            print(json.dumps({"benchmark": name, **row}), flush=True)
            rows.append(row)
        show(name, rows)
        failed = failed or any(row.get("passed") is False for row in rows)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
