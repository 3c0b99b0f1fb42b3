"""What a forecast leaves: forecast.json for programs, forecast.html and a table for people."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.artifacts.files import write_json, write_text
from compressor.artifacts.forecast_record import ForecastRecord
from compressor.report.cost_map import name_pair
from compressor.report.forecast_page import make_forecast_page
from compressor.report.forecast_text import (
    choose_pair,
    drop_dominated,
    find_check,
    find_last,
    format_counted,
    format_expected,
    rank_components,
)
from compressor.report.formatting import format_bytes, format_interval, format_number, format_percent, name_model

JSON_NAME, HTML_NAME = "forecast.json", "forecast.html"
# Without edges and padding, it fits into 80 columns.
STYLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "pad_edge": False,
    "show_edge": False,
    "padding": (0, 2, 0, 0),
    "title_justify": "left",
    "title_style": "bold",
}


def write_forecast(record: ForecastRecord, folder: Path) -> None:
    """Put forecast.json and forecast.html into `folder`, each whole or not at all; raises OutputError."""
    write_json(folder / JSON_NAME, record.to_json())
    write_text(folder / HTML_NAME, make_forecast_page(record))


def summarize_forecast(record: ForecastRecord) -> Group:
    """The tables at the end: a row for each size, then the components at both ends; what else is to be known."""
    parts: list[RenderableType] = [make_sizes_table(record), Text(_tell_end(record), style="dim")]
    parts.append(Text(""))
    pair = choose_pair(record)
    if pair is not None:
        parts += [make_ranks_table(record, name_pair(pair), pair), Text("")]
    return Group(*parts, *(Text(note) for note in record.notes))


def make_sizes_table(record: ForecastRecord) -> Table:
    """One row per size of all compressors together, bits per weight of components; dim where the law is not trusted.

    Plans that another one beats in size and in expected FDT are left out.
    """
    most = format_number(record.base["expected_fdtm"])
    table = Table(**STYLE, title=Text(f"{name_model(record)}: what every size would cost"))
    headings = ["size", "removed", "bits", f"FDT of {most} (95 %)"]
    for heading in [*headings, *(["counted (95 %)"] if record.checks else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    last = find_last(record)
    shown = drop_dominated(record, record.curve)
    for point in record.curve:
        if not any(point is other for other in shown):
            continue
        cells = [format_bytes(point.bytes), format_percent(point.amount, fixed=True)]
        cells.append(format_number(point.bits_per_weight, 2))
        cells.append(f"{format_expected(point)} ({format_interval(point.low, point.high)})")
        if record.checks:
            value, interval = format_counted(find_check(record, point))
            cells.append(f"{value} ({interval})" if value else "")
        table.add_row(*cells, style="" if point.trusted else "dim", end_section=point is last)
    return table


def make_ranks_table(record: ForecastRecord, treatment: str, pair: tuple[str, float]) -> Table:
    """The most and the least sensitive components."""
    table = Table(**STYLE, title=Text(f"The most and the least sensitive components, at {treatment}"))
    table.add_column("component", overflow="fold")
    for heading in ("σ²", "FDT if it alone is treated"):
        table.add_column(heading, justify="right", no_wrap=True)
    most, least = rank_components(record, pair)
    for ranked in (most, least[::-1]):
        for name, option in ranked:
            table.add_row(Text(name), format_number(option.cost), format_number(option.expected_fdtm, 1))
        table.add_section()
    return table


def _tell_end(record: ForecastRecord) -> str:
    last, limit = find_last(record), format_number(record.trusted_noise)
    if all(point.trusted for point in drop_dominated(record, record.curve)):
        return f"The forecast is trusted while σ is at most {limit} logits: everywhere here."
    where = f"with more than {format_percent(last.amount)} removed" if last else "at any size but the original's"
    return f"The forecast is trusted while σ is at most {limit} logits: do not trust it {where}."
