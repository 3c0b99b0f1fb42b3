"""The report of a run: report.json for programs, report.html and a table for people; and back from report.json."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from compressor.artifacts.files import read_json, write_json, write_text
from compressor.artifacts.from_json import rebuild
from compressor.artifacts.run_record import Record
from compressor.contracts import Score
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

JSON_NAME, HTML_NAME = "report.json", "report.html"


def write_report(record: Record, folder: Path) -> None:
    """Put report.json and report.html into `folder`, each whole or not at all; raises OutputError."""
    write_json(folder / JSON_NAME, record.to_json())
    write_text(folder / HTML_NAME, make_page(record))


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


def summarize_run(record: Record) -> Table:
    """The one table at the end of a run: scores with 95 % intervals, then what the compression came to."""
    # Without edges and padding, it fits into 80 columns.
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(**style, title=Text(_write_title(record)), title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    if record.final is None:
        table.show_header = False
        table.add_column("")
        table.add_row(Text(record.status), Text(record.error or "there is no result"))
        return table
    table.add_column("value (95 % interval)")
    table.add_column("75th percentile")
    for name, score in record.final.scores.items():
        p75 = format_estimate(score.p75, score.p75_low, score.p75_high)
        percentile = f"{p75} ({format_interval(score.p75_low, score.p75_high)})"
        table.add_row(Text(_write_label(record, name)), Text(_write_value(record, name, score)), percentile)
    table.add_section()
    for fact, words in list_facts(record).items():
        table.add_row(fact, Text(words))
    return table


def _write_label(record: Record, name: str) -> str:
    metric = record.metric(name)
    return metric.label if metric.unit in ("", "tokens") else f"{metric.label}, {metric.unit}"


def _write_value(record: Record, name: str, score: Score) -> str:
    """`16.4 of 64 tokens (14.9 – 17.8)`."""
    metric = record.metric(name)
    tokens = record.reference.continuation_tokens if record.reference else None
    unit = f" {format_unit(metric, tokens)}" if metric.unit == "tokens" else ""
    base = base_mean(record, name)
    original = "" if base is None else f", original {format_number(base)}"
    value = format_estimate(score.mean, score.low, score.high)
    return f"{value}{unit} ({format_interval(score.low, score.high)}){original}"


def _write_title(record: Record) -> str:
    if record.final is None:
        return name_model(record)
    return f"{name_model(record)}: {format_percent(record.final.amount)} taken away by {name_compressors(record)}"
