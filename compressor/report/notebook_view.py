"""What a notebook shows of a result: a short table and a link to the page that has everything."""

import html
from collections.abc import Sequence
from pathlib import Path

from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_record import Record
from compressor.report.forecast_report import HTML_NAME as FORECAST_PAGE
from compressor.report.forecast_text import format_expected
from compressor.report.formatting import (
    base_mean,
    format_bytes,
    format_interval,
    format_number,
    format_percent,
    format_score,
    list_facts,
    name_compressors,
    name_model,
)
from compressor.report.run_report import HTML_NAME as RUN_PAGE

Rows = Sequence[Sequence[object]]


def make_run_view(record: Record, folder: Path) -> str:
    """Scores of the result beside those of the original, what the compression came to, and a link to report.html."""
    if record.final is None:
        title = f"{name_model(record)}: {record.status}"
        return write_view(title, [[record.error or "there is no result"]], link(folder / RUN_PAGE))
    scores = [
        [record.metric(name).label, format_score(score), format_number(base_mean(record, name))]
        for name, score in record.final.scores.items()
    ]
    facts = [[fact.name, fact.words, ""] for fact in list_facts(record)]
    title = f"{name_model(record)} compressed by {name_compressors(record)}"
    header = ["", "value (95 % interval)", "original"]
    return write_view(title, [header, *scores, *facts], link(folder / RUN_PAGE))


def make_forecast_view(record: ForecastRecord, folder: Path) -> str:
    """A row for every size of all compressors together, and a link to forecast.html."""
    rows: list[list[object]] = [["amount", "size", "bits per weight", "expected FDT (95 % interval)"]]
    for point in record.curve:
        expected = f"{format_expected(point)} ({format_interval(point.low, point.high)})"
        bits = format_number(point.bits_per_weight, 2)
        rows.append([format_percent(point.amount), format_bytes(point.bytes), bits, expected])
    return write_view(f"{name_model(record)}: what every size would cost", rows, link(folder / FORECAST_PAGE))


def link(page: Path) -> str:
    """A link to a page: relative to the working directory where it lies below that, as notebooks serve files."""
    try:
        target = page.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        target = page.absolute().as_uri()
    return f'<a href="{html.escape(target)}" target="_blank">{html.escape(str(page))}</a>'


def write_view(title: str, rows: Rows, footer: str) -> str:
    """A table under a title; `footer` is HTML already, everything else is text."""
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption>{lines}</table><p>{footer}</p>"
