"""What a forecast leaves: forecast.json for programs, forecast.html and a table for people."""

from pathlib import Path

import rich.table
from rich.console import Group, RenderableType
from rich.text import Text

from compressor.artifacts.files import write_json, write_text
from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_folder import claim_files
from compressor.report.cost_map import Pair, name_pair
from compressor.report.forecast_page import make_forecast_page
from compressor.report.forecast_text import (
    choose_pair,
    drop_dominated,
    find_last,
    format_counted,
    format_expected,
    rank_components,
)
from compressor.report.formatting import format_bytes, format_number, format_percent, name_model
from compressor.report.tables import Table, draw_in_terminal

JSON_NAME, HTML_NAME = "forecast.json", "forecast.html"


def write_forecast(record: ForecastRecord, folder: Path) -> None:
    """Put forecast.json and forecast.html into `folder`, each whole or not at all; raises OutputError."""
    claim_files(folder, [JSON_NAME])
    write_json(folder / JSON_NAME, record.to_json())
    claim_files(folder, [HTML_NAME])
    write_text(folder / HTML_NAME, make_forecast_page(record))


def summarize_forecast(record: ForecastRecord) -> Group:
    """The tables at the end: a row for each size, then the components at both ends; what else is to be known."""
    parts: list[RenderableType] = [_make_sizes(record), Text(_describe_end(record), style="dim"), Text("")]
    if pair := choose_pair(record):
        parts += [_make_ranks(record, pair), Text("")]
    return Group(*parts, *(Text(note) for note in record.notes))


def _make_sizes(record: ForecastRecord) -> rich.table.Table:
    """One row per size of all compressors together, bits per weight of components; dim where the law is not trusted.

    Plans that another one beats in size and in expected FDT are left out.
    """
    points, last = drop_dominated(record, record.curve), find_last(record)
    most = format_number(record.base["expected_fdtm"])
    rows = [
        [
            ("size", format_bytes(point.bytes)),
            ("removed", format_percent(point.amount, fixed=True)),
            ("bits", format_number(point.bits_per_weight, 2)),
            (f"FDT of {most} (95 %)", format_expected(point)),
            ("counted (95 %)", format_counted(record, point)),
        ]
        for point in points
    ]
    caption = f"{name_model(record)}: what every size would cost"
    table = draw_in_terminal(Table(caption, rows, words=0))
    for row, point in zip(table.rows, points, strict=True):
        row.style = "" if point.trusted else "dim"
        row.end_section = point is last
    return table


def _make_ranks(record: ForecastRecord, pair: Pair) -> rich.table.Table:
    """The most and the least sensitive components."""
    most, least = rank_components(record, pair)
    rows = [
        [
            ("component", name),
            ("σ²", format_number(option.cost)),
            ("FDT if it alone is treated", format_number(option.expected_fdtm, 1)),
        ]
        for name, option in [*most, *least[::-1]]
    ]
    caption = f"The most and the least sensitive components, at {name_pair(pair)}"
    table = draw_in_terminal(Table(caption, rows))
    if most:
        table.rows[len(most) - 1].end_section = True
    return table


def _describe_end(record: ForecastRecord) -> str:
    last, limit = find_last(record), format_number(record.trusted_noise)
    if all(point.trusted for point in drop_dominated(record, record.curve)):
        return f"The forecast is trusted while σ is at most {limit} logits: everywhere here."
    where = f"with more than {format_percent(last.amount)} removed" if last else "at any size but the original's"
    return f"The forecast is trusted while σ is at most {limit} logits: do not trust it {where}."
