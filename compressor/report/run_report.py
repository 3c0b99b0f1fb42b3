"""The report of a run: report.json for programs, report.html and a table for people; and back from report.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.artifacts.files import read_json, write_json, write_text
from compressor.artifacts.from_json import rebuild
from compressor.artifacts.run_record import Record
from compressor.errors import OutputError
from compressor.report.formatting import (
    base_mean,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    format_unit,
    list_facts,
    name_compressors,
    name_model,
)
from compressor.report.run_page import make_page

JSON_NAME, HTML_NAME, SEQUENCES_NAME = "report.json", "report.html", "sequences.jsonl"
SHOWN_FIRST = ("fdtm", "sdtm", "divergent_perplexity", "kl")
MOST_METRICS = 4
"""So many metrics are shown in a terminal, these before others."""


def write_report(record: Record, folder: Path) -> None:
    """Put report.json and report.html into `folder`, each whole or not at all; raises OutputError."""
    write_json(folder / JSON_NAME, record.to_json())
    write_text(folder / HTML_NAME, make_page(record, read_sequences(folder)))


def read_sequences(folder: Path) -> dict[str, list[float]]:
    """Metric -> its value for each prefix, from sequences.jsonl; empty where there is none that can be read."""
    try:
        lines = (folder / SEQUENCES_NAME).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line]
    except (OSError, ValueError):
        return {}
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            if name != "index" and type(value) in (int, float):
                found.setdefault(name, []).append(float(value))
    return found


def read_report(folder: Path) -> Record:
    """The record that `write_report` put there; raises OutputError where it is missing, cut off or something else.

    Numbers that were not finite come back as NaN. Fields of a later version are passed over.
    """
    path = folder / JSON_NAME
    data = read_json(path)
    try:
        return rebuild(Record, data)
    except (TypeError, ValueError) as error:
        raise OutputError(f"{path} is not a report of this version: {error}; run again") from error


def summarize_run(record: Record) -> Group:
    """The tables at the end of a run: four scores with 95 % intervals, then what the compression came to."""
    title = Text(_write_title(record), style="bold")
    if record.final is None:
        return Group(title, Text(f"{record.status}: {record.error or 'there is no result'}"))
    chosen, others = choose_metrics(list(record.final.scores))
    parts: list[RenderableType] = [title, _make_scores(record, chosen)]
    if others:
        names = ", ".join(record.metric(name).label for name in others)
        parts.append(Text(f"In {HTML_NAME} too: {names}", style="dim"))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    for fact in list_facts(record):
        words = Text(fact.words)
        facts.add_row(fact.name, words.append(f"  {fact.meaning}", style="dim") if fact.meaning else words)
    return Group(*parts, Text(""), facts)


def choose_metrics(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that a terminal of 80 columns has room for, and the others; both in the order given."""
    ranked = sorted(names, key=lambda name: SHOWN_FIRST.index(name) if name in SHOWN_FIRST else len(SHOWN_FIRST))
    chosen = set(ranked[:MOST_METRICS])
    return [name for name in names if name in chosen], [name for name in names if name not in chosen]


def _make_scores(record: Record, names: Sequence[str]) -> Table:
    assert record.final is not None
    has_base = any(base_mean(record, name) is not None for name in names)
    # Without edges and padding, it fits into 80 columns.
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "padding": (0, 2, 0, 0)}
    table = Table(**style)
    table.add_column("")
    headings = ["compressed", "95 % interval", *(["original"] if has_base else []), "75th percentile"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    tokens = record.reference.continuation_tokens if record.reference else None
    for name in names:
        score, metric = record.final.scores[name], record.metric(name)
        label = f"{metric.label}, {format_unit(metric, tokens)}" if metric.unit else metric.label
        cells = [format_estimate(score.mean, score.low, score.high), format_interval(score.low, score.high)]
        cells += [format_number(base_mean(record, name))] if has_base else []
        table.add_row(Text(label), *cells, format_estimate(score.p75, score.p75_low, score.p75_high))
    return table


def _write_title(record: Record) -> str:
    if record.final is None:
        return name_model(record)
    removed = format_percent(record.final.amount)
    return f"{name_model(record)}: {name_compressors(record)} removed {removed} of the bits"
