"""What a notebook shows of a result: a short table and a link to the page that has everything."""

from collections.abc import Sequence
from pathlib import Path

from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_record import Record
from compressor.report.forecast_report import HTML_NAME as FORECAST_PAGE
from compressor.report.forecast_text import format_expected
from compressor.report.formatting import (
    MISSING,
    format_base,
    format_bytes,
    format_number,
    format_percent,
    format_score,
    list_facts,
    name_compressors,
    name_model,
)
from compressor.report.page import fill_template
from compressor.report.run_report import HTML_NAME as RUN_PAGE


def make_run_view(record: Record, folder: Path) -> str:
    """Scores of the result beside those of the original, what the compression came to, and a link to report.html."""
    if record.final is None:
        title, rows = f"{name_model(record)}: {record.status}", [[record.error or "there is no result"]]
    else:
        title = f"{name_model(record)} compressed by {name_compressors(record)}"
        rows = [["", "value (95 % interval)", "original"]]
        rows += [
            [record.metric(name).label, format_score(score), format_base(record, name) or MISSING]
            for name, score in record.final.scores.items()
        ]
        rows += [[fact.name, fact.words, ""] for fact in list_facts(record)]
    return _write_view(title, rows, folder / RUN_PAGE)


def make_forecast_view(record: ForecastRecord, folder: Path) -> str:
    """A row for every size of all compressors together, and a link to forecast.html."""
    rows = [
        [
            format_percent(point.amount),
            format_bytes(point.bytes),
            format_number(point.bits_per_weight, 2),
            format_expected(point),
        ]
        for point in record.curve
    ]
    header = ["amount", "size", "bits per weight", "expected FDT (95 % interval)"]
    return _write_view(f"{name_model(record)}: what every size would cost", [header, *rows], folder / FORECAST_PAGE)


def _write_view(title: str, rows: Sequence[Sequence[str]], page: Path) -> str:
    """The link is relative to the working directory where the page lies below that, as notebooks serve files."""
    path = page.absolute()
    target = path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.as_uri()
    return fill_template("view.html", {"title": title, "rows": rows, "target": target, "page": str(page)})
