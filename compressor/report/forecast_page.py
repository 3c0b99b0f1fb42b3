"""forecast.html: one file that opens anywhere, offline. First what to expect in plain words, then every number."""

from collections.abc import Sequence

from compressor.artifacts.forecast_record import ForecastRecord, PointForecast
from compressor.report.cost_map import draw_cost_map, name_pair
from compressor.report.forecast_text import (
    choose_pair,
    drop_dominated,
    find_last,
    format_counted,
    format_expected,
    format_parts,
    gets_smaller,
    list_compressors,
    list_forecast_facts,
    rank_components,
)
from compressor.report.formatting import (
    choose_unit,
    format_bytes,
    format_interval,
    format_number,
    format_percent,
    format_score,
)
from compressor.report.line_chart import Axes, Point, draw_lines
from compressor.report.page import fill_page
from compressor.report.tables import Table
from compressor.report.vega import Picture


def make_forecast_page(record: ForecastRecord) -> str:
    """The whole page; all text of the forecast is escaped."""
    points = drop_dominated(record, record.curve)
    return fill_page(
        "forecast.html",
        record,
        {
            "kind": "Forecast",
            "half": find_last(record, record.base["expected_fdtm"] / 2),
            "last": find_last(record),
            "compressors": list_compressors(record),
            "facts": list_forecast_facts(record),
            "curves": _draw_curves(record),
            "is_trusted": all(point.trusted for point in points),
            "sizes": _make_sizes(record, points),
            "left_out": len(record.curve) - len(points),
            "unpacked": _list_unpacked(record),
            "cost_map": draw_cost_map(record.components),
            "ranks": _make_ranks(record),
        },
    )


def _draw_curves(record: ForecastRecord) -> Picture | None:
    """Expected FDT over size on disk, in the unit of the original's size; over the amount where no plan is smaller."""
    together = "all together" if record.curves else "expected"
    by_size = gets_smaller(record)
    unit, divisor = choose_unit(record.base["bytes"])

    def place(size: float, amount: float) -> float:
        return size / divisor if by_size else amount

    series = {
        name: [
            Point(place(p.bytes, p.amount), p.expected_fdtm, p.low, p.high, _describe_point(p), p.trusted)
            for p in drop_dominated(record, points)
        ]
        for name, points in {together: record.curve, **record.curves}.items()
    }
    marks = [
        Point(
            place(check.bytes, check.amount),
            score.mean,
            score.low,
            score.high,
            f"counted at {format_bytes(check.bytes)}: FDT {format_score(score)}",
        )
        for check in record.checks
        if (score := check.scores.get("fdtm"))
    ]
    across = f"size on disk, {unit}" if by_size else "bits removed (amount)"
    axes = Axes(across, "expected FDT, tokens", float(record.base["expected_fdtm"]), not by_size)
    # One point for a compressor that makes nothing smaller is the original once more.
    series = {name: points for name, points in series.items() if name == together or len(points) > 1}
    return draw_lines(series, axes, marks, height=270)


def _describe_point(point: PointForecast) -> str:
    made = f"; made by: {point.command}" if point.command else ""
    return (
        f"{format_bytes(point.bytes)}, {format_percent(point.amount)} of the bits removed: expected FDT "
        f"{format_expected(point)}{'' if point.trusted else ', not trusted'}{made}"
    )


def _list_unpacked(record: ForecastRecord) -> list[str]:
    """Compressors that remove something and store as much as before."""
    shrinking = {
        option.compressor
        for matrix in record.components.values()
        for option in matrix.options
        if option.bytes < 0.999 * max(other.bytes for other in matrix.options)
    }
    return [name for name in list_compressors(record) if name not in shrinking and len(record.curve) > 1]


def _make_sizes(record: ForecastRecord, points: Sequence[PointForecast]) -> Table:
    is_trusted = all(point.trusted for point in points)
    rows = [
        [
            ("size", format_bytes(point.bytes)),
            ("bits removed", format_percent(point.amount, fixed=True)),
            ("expected FDT (95 % band)", format_expected(point)),
            ("bits per weight", format_number(point.bits_per_weight, 2)),
            ("σ", format_number(point.noise, 3)),
            ("counted (95 % interval)", format_counted(record, point)),
            ("weights treated by", format_parts(point)),
            ("forecast", None if is_trusted else "trusted" if point.trusted else "not trusted"),
        ]
        for point in points
    ]
    caption = "Every size: the best plan that was found, all compressors together, and the command that makes it"
    return Table(caption, rows, words=0, commands=[point.command or "" for point in points])


def _make_ranks(record: ForecastRecord) -> list[Table]:
    pair = choose_pair(record)
    if pair is None:
        return []
    tables = []
    for words, ranked in zip(("most", "least"), rank_components(record, pair), strict=True):
        rows = [
            [
                ("component", name),
                ("σ²", format_number(option.cost)),
                ("95 % interval", format_interval(option.low, option.high)),
                ("FDT if it alone is treated", format_number(option.expected_fdtm, 1)),
            ]
            for name, option in ranked
        ]
        caption = f"The {len(rows)} {words} sensitive components, at {name_pair(pair)}"
        tables.append(Table(caption, rows))
    return tables
