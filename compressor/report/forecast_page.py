"""forecast.html: one file that opens anywhere, offline. First what to expect in plain words, then every number."""

from collections.abc import Sequence

from compressor.artifacts.forecast_record import ForecastRecord, PointForecast
from compressor.report.cost_map import draw_cost_map, name_pair
from compressor.report.forecast_text import (
    choose_pair,
    drop_dominated,
    find_check,
    find_half,
    find_last,
    format_counted,
    format_expected,
    format_parts,
    gets_smaller,
    list_forecast_facts,
    rank_components,
)
from compressor.report.formatting import (
    choose_unit,
    format_bytes,
    format_interval,
    format_number,
    format_percent,
    join_names,
    name_model,
)
from compressor.report.html_tables import HtmlTable
from compressor.report.line_chart import Axes, Point, draw_lines
from compressor.report.run_page import describe_making, tell_reference
from compressor.report.templating import fill_template
from compressor.report.vega import Picture


def make_forecast_page(record: ForecastRecord) -> str:
    """The whole page; nothing in it is loaded from elsewhere, and all text of the forecast is escaped."""
    rows = drop_dominated(record, record.curve)
    left_out = len(record.curve) - len(rows)
    return fill_template(
        "forecast.html",
        {
            "model": name_model(record),
            "sentences": [text for text in (_tell_sizes(record), _tell_how(record)) if text],
            "facts": list_forecast_facts(record),
            "curves": _draw_curves(record),
            "curves_caption": _write_caption(record),
            "sizes": _make_sizes(record, rows),
            "left_out": f"Not shown: {left_out} plans that are larger and expected to do worse than one in the table; "
            "forecast.json has them." if left_out else "",
            "meaning": _tell_meaning(record),
            "cost_map": draw_cost_map(record.components),
            "ranks": _make_ranks(record),
            "sample": tell_reference(record.reference),
            "notes": record.notes,
            "made": describe_making(record),
        },
    )  # fmt: skip


def _tell_how(record: ForecastRecord) -> str:
    names = join_names(list(dict.fromkeys(o.compressor for m in record.components.values() for o in m.options)))
    prefixes = record.reference.prefixes if record.reference else 0
    return (
        f"Nothing was compressed for this page. One backward pass over {prefixes:,} prefixes predicted what {names} "
        f"would do to each of {len(record.components):,} weight matrices."
    )


def _tell_sizes(record: ForecastRecord) -> str:
    """The size at which half of the text still agrees, and the last that the law is trusted for."""
    most, half, last = format_number(record.base["expected_fdtm"]), find_half(record), find_last(record)
    texts = [
        f"At {format_bytes(point.bytes)} of {format_bytes(record.base['bytes'])} ({format_percent(point.amount)} of "
        f"the bits removed) the model should agree with the original for {format_expected(point)} of {most} tokens, "
        f"until the first that differs (95 % band {format_interval(point.low, point.high)})"
        for point in [half]
        if point
    ]
    if last and last is not half:
        texts.append(
            f"{'at' if texts else 'At'} {format_bytes(last.bytes)} ({format_percent(last.amount)} removed), the most "
            f"for which the forecast is trusted, for {format_expected(last)}"
        )
    return "; ".join(texts) + "." if texts else ""


def _draw_curves(record: ForecastRecord) -> Picture | None:
    """Expected FDT over size on disk, in the unit of the original's size; over the amount where no plan is smaller."""
    together = "all together" if record.curves else "expected"
    by_size = gets_smaller(record)
    unit, divisor = choose_unit(record.base["bytes"])

    def place(points: Sequence[PointForecast]) -> list[Point]:
        return [
            Point(
                point.bytes / divisor if by_size else point.amount,
                point.expected_fdtm,
                point.low,
                point.high,
                _describe(point),
                point.trusted,
            )
            for point in drop_dominated(record, points)
        ]

    series = {together: place(record.curve)} | {name: place(points) for name, points in record.curves.items()}
    marks = [
        Point(
            check.bytes / divisor if by_size else check.amount,
            score.mean,
            score.low,
            score.high,
            f"counted at {format_bytes(check.bytes)}: FDT {' ('.join(format_counted(check))})",
        )
        for check in record.checks
        if (score := check.scores.get("fdtm"))
    ]
    across = f"size on disk, {unit}" if by_size else "bits removed (amount)"
    axes = Axes(across, "expected FDT, tokens", float(record.base["expected_fdtm"]), not by_size, not by_size)
    # One point for a compressor that makes nothing smaller is the original once more.
    series = {name: points for name, points in series.items() if name == together or len(points) > 1}
    return draw_lines(series, axes, marks, size=(440, 270))


def _describe(point: PointForecast) -> str:
    made = f"; made by: {point.command}" if point.command else ""
    return (
        f"{format_bytes(point.bytes)}, {format_percent(point.amount)} of the bits removed: expected FDT "
        f"{format_expected(point)} ({format_interval(point.low, point.high)})"
        f"{'' if point.trusted else ', not trusted'}{made}"
    )


def _write_caption(record: ForecastRecord) -> str:
    caption = "Each dot is a whole plan, the best that was found for its size; its text has the command that makes it."
    if record.checks:
        caption += " Rings are plans that were really applied, counted on the same prefixes, and undone."
    if any(not point.trusted for point in drop_dominated(record, record.curve)):
        caption += " Dashes: the forecast is not trusted there."
    return caption


def _tell_meaning(record: ForecastRecord) -> list[str]:
    last = find_last(record)
    limit = format_number(record.trusted_noise)
    texts = [
        "FDT counts the tokens that the compressed model says exactly as the original does, until the first that "
        f"differs, of {format_number(record.base['expected_fdtm'])}. The band is a 95 % interval over prefixes: how "
        "much other texts would change the number, if the law below holds.",
        "The margin law: at every position the original prefers its token to the second-best one by some logits, the "
        "margin. A treatment changes margins a little. The mean square of these changes, σ² (small margins count "
        "most), adds up over components, and σ alone decides where the texts are expected to part, because the "
        "original's own margins are known.",
        f"The law ends where changes are no longer small. Beyond σ = {limit} logits it is not trusted: effects no "
        "longer add up, and the model will rather do worse than predicted. "
        + (f"That is the case above {format_percent(last.amount)} of the bits removed. " if last else "")
        + "A forecast is no proof: compressor run counts what a plan does, on prefixes that no search has seen.",
    ]
    if stored := _list_unpacked(record):
        texts.append(
            f"What {join_names(stored)} removes becomes zeros, which are stored like any other weight: the amount "
            "grows, the size on disk does not fall."
        )
    return texts


def _list_unpacked(record: ForecastRecord) -> list[str]:
    """Compressors that remove something and store as much as before."""
    sizes: dict[str, set[bool]] = {}
    for matrix in record.components.values():
        if matrix.options:
            most = max(option.bytes for option in matrix.options)
            for option in matrix.options:
                sizes.setdefault(option.compressor, set()).add(option.bytes < most * 0.999)
    full = {name for name, smaller in sizes.items() if smaller == {False}}
    return [name for name in sizes if name in full and len(record.curve) > 1]


def _make_sizes(record: ForecastRecord, points: Sequence[PointForecast]) -> HtmlTable | None:
    if not points:
        return None
    doubted = any(not point.trusted for point in points)
    headings = ["size", "bits removed", "expected FDT (95 % band)", "bits per weight", "σ"]
    headings += ["counted (95 % interval)"] if record.checks else []
    headings += ["weights treated by", *(["forecast"] if doubted else [])]
    rows = []
    for point in points:
        value, interval = format_counted(find_check(record, point))
        row = [format_bytes(point.bytes), format_percent(point.amount, fixed=True)]
        row += [f"{format_expected(point)} ({format_interval(point.low, point.high)})"]
        row += [format_number(point.bits_per_weight, 2), format_number(point.noise, 3)]
        row += [f"{value} ({interval})" if value else ""] if record.checks else []
        row += [format_parts(point), *(["trusted" if point.trusted else "not trusted"] if doubted else [])]
        rows.append(row)
    caption = "Every size: the best plan that was found, all compressors together, and the command that makes it"
    commands = [point.command or "" for point in points]
    return HtmlTable(caption, headings, rows, words=0, commands=commands)


def _make_ranks(record: ForecastRecord) -> list[HtmlTable]:
    pair = choose_pair(record)
    if pair is None:
        return []
    tables = []
    for words, ranked in zip(("most", "least"), rank_components(record, pair), strict=True):
        rows = [
            [name, format_number(o.cost), format_interval(o.low, o.high), format_number(o.expected_fdtm, 1)]
            for name, o in ranked
        ]
        caption = f"The {len(rows)} {words} sensitive components, at {name_pair(pair)}"
        tables.append(HtmlTable(caption, ["component", "σ²", "95 % interval", "FDT if it alone is treated"], rows))
    return tables
