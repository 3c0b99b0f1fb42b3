"""Many runs side by side: one row each, also for those that failed, as comparison.json and as a table."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from compressor.artifacts.files import write_json
from compressor.artifacts.run_record import Record
from compressor.errors import OutputError
from compressor.report.formatting import (
    MISSING,
    find_decimals,
    format_bytes,
    format_estimate,
    format_number,
    format_percent,
)
from compressor.report.run_report import JSON_NAME, choose_metrics, read_report

COMPARISON_NAME = "comparison.json"
WIDEST_SETTINGS = 22
"""Longer settings are folded where the terminal is narrow."""
FIELDS = ("amount", "sparsity", "bits_per_weight", "packed_bits_per_weight", "bytes")

Row = dict[str, Any]


def collect_rows(folder: Path, *others: Path) -> list[Row]:
    """A row per run, in the order of the jobs; `folder` is a multirun folder, or a run's own, as are the `others`.

    A row holds job, folder, overrides (those that not all runs share), status, error, the size of the result and
    scores: metric -> mean, low, high. A run without a readable report is a row with its error. Raises OutputError
    where there is no run at all.
    """
    jobs = [job for place in (folder, *others) for job in _find_jobs(place)]
    if not jobs:
        raise OutputError(f"no runs in {folder}; give the folder of a run, or of several started with -m")
    rows = [_make_row(job) for job in jobs]
    shared = set.intersection(*(set(row["overrides"]) for row in rows)) if len(rows) > 1 else set()
    for row in rows:
        row["overrides"] = [override for override in row["overrides"] if override not in shared]
    return rows


def write_comparison(folder: Path) -> list[Row]:
    """Collect the runs of a multirun folder into its comparison.json; returns the rows."""
    rows = collect_rows(folder)
    write_json(folder / COMPARISON_NAME, rows)
    return rows


def comparison_table(rows: Sequence[Row]) -> Group:
    """The rows as a table of 80 columns, and below it a line for each job that failed.

    A row has the settings that differ, the size and four metrics; the others are in comparison.json. Below a value, `±`
    is the longer side of its 95 % interval.
    """
    metrics, _ = choose_metrics(list(dict.fromkeys(name for row in rows for name in row["scores"])))
    shortened = shorten_settings(rows)
    longest = max((len(line) for settings in shortened for line in settings.splitlines()), default=0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    table.add_column("settings", overflow="fold", min_width=min(longest, WIDEST_SETTINGS))
    for heading in ("removed", "size", *metrics):
        # A heading may come from a plugin's name: as Text, its brackets are no markup.
        table.add_column(Text(heading.replace("_", " ")), justify="right", overflow="fold")
    for row, settings in zip(rows, shortened, strict=True):
        cells = [
            format_percent(row["amount"], fixed=True),
            format_bytes(row["bytes"]),
            *(_format_mean(row["scores"].get(name)) for name in metrics),
        ]
        table.add_row(*(Text(cell) for cell in (str(row["job"]), settings, *cells)))
    failures = [f"run {row['job']} {words}" for row in rows if (words := _describe_failure(row))]
    return Group(table, *(Text(line) for line in ["", *failures] if failures))


def shorten_settings(rows: Sequence[Row]) -> list[str]:
    """The overrides of each row, a line for each; `schedule.targets=…` is `targets=…` where no other key ends so."""
    keys = {override.partition("=")[0] for row in rows for override in row["overrides"]}
    ends = Counter(key.rpartition(".")[2] for key in keys)

    def shorten(override: str) -> str:
        key, equals, value = override.partition("=")
        end = key.rpartition(".")[2]
        return f"{end if ends[end] == 1 else key}{equals}{value}"

    return ["\n".join(shorten(override) for override in row["overrides"]) for row in rows]


def _find_jobs(place: Path) -> list[Path]:
    """The folder itself where it holds a run, else its numbered folders, 10 after 9."""
    if (place / JSON_NAME).is_file():
        return [place]
    if not place.is_dir():
        raise OutputError(f"{place} is not a folder; give the folder of a run, or of several started with -m")
    numbered = [child for child in place.iterdir() if child.is_dir() and re.fullmatch(r"[0-9]+", child.name)]
    return sorted(numbered, key=lambda child: int(child.name))


def _make_row(job: Path) -> Row:
    try:
        record, error = read_report(job), None
    except OutputError as problem:
        has_report = (job / JSON_NAME).is_file()
        error = str(problem) if has_report else f"left no {JSON_NAME}: it was interrupted or is still running"
        record = Record(status="unreadable" if has_report else "missing", config={}, versions={}, command="")
    final = record.final
    return {
        "job": job.name,
        "folder": str(job),
        "overrides": _read_overrides(job, record.command),
        "status": record.status,
        "error": error or record.error,
        **{field: getattr(final, field) if final else None for field in FIELDS},
        "scores": {
            name: {"mean": score.mean, "low": score.low, "high": score.high}
            for name, score in (final.scores if final else {}).items()
        },
    }


def _read_overrides(job: Path, command: str) -> list[str]:
    """What Hydra wrote down, else the assignments of the command line."""
    try:
        found = yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if isinstance(found, list):
        return [str(override) for override in found]
    try:
        return [word for word in shlex.split(command) if "=" in word]
    except ValueError:
        return []


def _format_mean(score: Mapping[str, float | None] | None) -> str:
    if score is None:
        return MISSING
    # A row that was read from comparison.json has None where the number was not finite.
    mean, low, high = (math.nan if (value := score[key]) is None else value for key in ("mean", "low", "high"))
    if math.isnan(mean):
        return MISSING
    if not (math.isfinite(low) and math.isfinite(high)):
        return format_number(mean)
    side = format_number(max(high - mean, mean - low), find_decimals(low, high))
    return f"{format_estimate(mean, low, high)}\n±{side}"


def _describe_failure(row: Row) -> str:
    if row["status"] == "done":
        return ""
    return f"{row['status']}: {row['error']}" if row["error"] else str(row["status"])
