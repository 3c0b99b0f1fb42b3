"""Many runs side by side: one row each, also for those that failed, as comparison.json and as a table."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml  # type: ignore[import-untyped]
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from compressor.artifacts.files import read_regular, write_json
from compressor.artifacts.run_files import COMPARISON, list_jobs
from compressor.artifacts.run_record import Record
from compressor.artifacts.run_status import FAILED, read_status
from compressor.contracts import Score
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

WIDEST_SETTINGS = 22
"""Longer settings are folded where the terminal is narrow."""
MISSED, REFUSED = "missing", "refused"
"""The status of a job that left no report, and of one whose folder holds something else. If Hydra could not even write
the overrides of a job, it has none."""
FIELDS = ("amount", "sparsity", "bits_per_weight", "packed_bits_per_weight", "bytes")


@dataclass
class Job:
    """A run of a multirun, and those of its overrides that not all of the runs share.

    Without a readable report, the record has only a status and an error.
    """

    folder: Path
    record: Record
    overrides: list[str]

    def to_json(self) -> dict[str, Any]:
        """A row of comparison.json."""
        final = self.record.final
        return {
            "job": self.folder.name,
            "folder": str(self.folder),
            "overrides": self.overrides,
            "status": self.record.status,
            "error": self.record.error,
            **{field: getattr(final, field) if final else None for field in FIELDS},
            "scores": {
                name: {"mean": score.mean, "low": score.low, "high": score.high}
                for name, score in (final.scores if final else {}).items()
            },
        }


def read_jobs(
    folder: Path,
    failures: Mapping[str, str] = MappingProxyType({}),
    asked: Mapping[str, list[str]] = MappingProxyType({}),
) -> list[Job]:
    """The runs in the numbered folders of a multirun, 10 after 9. Raises OutputError where there is none.

    `failures` are the errors of jobs that failed now, by their number. Nothing else in their folders is theirs. `asked`
    are the overrides of jobs as they were given now: a job that is done keeps those of its own start.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; give the folder of several runs, started with -m")
    jobs = [_read_job(job, failures.get(job.name), asked.get(job.name)) for job in list_jobs(folder)]
    if not jobs:
        raise OutputError(f"no runs in {folder}; give the folder of several runs, started with -m")
    known = [set(job.overrides) for job in jobs if job.overrides or job.record.status != MISSED]
    shared = set.intersection(*known) if len(known) > 1 else set()
    for job in jobs:
        job.overrides = [override for override in job.overrides if override not in shared]
    return jobs


def write_comparison(
    folder: Path,
    failures: Mapping[str, str] = MappingProxyType({}),
    asked: Mapping[str, list[str]] = MappingProxyType({}),
) -> list[Job]:
    """Write the comparison.json of a multirun: a row for each job, in their order, also for those that failed."""
    jobs = read_jobs(folder, failures, asked)
    write_json(folder / COMPARISON, [job.to_json() for job in jobs])
    return jobs


def make_comparison_table(jobs: Sequence[Job]) -> Group:
    """The jobs as a table of 80 columns, and below it a line for each that failed, shortened where it is too long.

    A row has the settings that differ, the size and four metrics; the others are in comparison.json. Below a value, `±`
    is the longer side of its 95 % interval.
    """
    finals = [job.record.final for job in jobs]
    labels = {
        name: job.record.metric(name).label for job in jobs if job.record.final for name in job.record.final.scores
    }
    metrics, _ = choose_metrics(list(labels))
    shortened = shorten_settings([job.overrides for job in jobs])
    longest = max((len(line) for settings in shortened for line in settings.splitlines()), default=0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", no_wrap=True)
    table.add_column("settings", overflow="fold", min_width=min(longest, WIDEST_SETTINGS))
    for heading in ("removed", "size", *(labels[name] for name in metrics)):
        # A heading may come from a plugin: as Text, its brackets are no markup.
        table.add_column(Text(heading), justify="right", overflow="fold")
    for job, settings, final in zip(jobs, shortened, finals, strict=True):
        cells = [
            format_percent(final.amount if final else None, fixed=True),
            format_bytes(final.bytes if final else None),
            *(_format_mean(final.scores.get(name) if final else None) for name in metrics),
        ]
        table.add_row(*map(Text, (job.folder.name, settings, *cells)))
    failures = [_describe_failure(job) for job in jobs if job.record.status != "done"]
    lines = ["", *failures] if failures else []
    return Group(table, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def _describe_failure(job: Job) -> str:
    """What became of a job that is not done, as one line."""
    reason = " ".join((job.record.error or "").split())
    return f"run {job.folder.name} {job.record.status}" + (reason and f": {reason}")


def shorten_settings(settings: Sequence[Sequence[str]]) -> list[str]:
    """The overrides of each job, a line for each; `schedule.targets=…` is `targets=…` where no other key ends so."""
    keys = {override.partition("=")[0] for overrides in settings for override in overrides}
    ends = Counter(key.rpartition(".")[2] for key in keys)

    def shorten(override: str) -> str:
        key, equals, value = override.partition("=")
        end = key.rpartition(".")[2]
        return f"{end if ends[end] == 1 else key}{equals}{value}"

    return ["\n".join(map(shorten, overrides)) for overrides in settings]


def _read_job(folder: Path, failure: str | None, asked: list[str] | None) -> Job:
    try:
        record = read_report(folder)
    except OutputError as problem:
        if (folder / JSON_NAME).is_file():
            record = Record("unreadable", {}, {}, error=str(problem))
        else:
            error = f"left no {JSON_NAME}: it was interrupted or is still running"
            record = Record(MISSED, {}, {}, error=error)
    if failure is not None and record.status != FAILED:
        has_begun = read_status(folder).get("status") == FAILED
        record = Record(FAILED if has_begun else REFUSED, {}, {}, record.command, error=failure)
    return Job(folder, record, _read_overrides(folder, record.command) if asked is None else list(asked))


def _read_overrides(job: Path, command: str) -> list[str]:
    """What Hydra wrote down, else the assignments of the command line."""
    try:
        text = read_regular(job / ".hydra" / "overrides.yaml").decode("utf-8")
        found = yaml.load(text, yaml.BaseLoader)  # texts and lists of them, no other types
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        found = None
    if isinstance(found, list) and all(isinstance(override, str) for override in found):
        return found
    try:
        return [word for word in shlex.split(command) if "=" in word]
    except ValueError:
        return []


def _format_mean(score: Score | None) -> str:
    if score is None or math.isnan(score.mean):
        return MISSING
    if not (math.isfinite(score.low) and math.isfinite(score.high)):
        return format_number(score.mean)
    side = max(score.high - score.mean, score.mean - score.low)
    decimals = find_decimals(score.low, score.high)
    return f"{format_estimate(score.mean, score.low, score.high)}\n±{format_number(side, decimals)}"
