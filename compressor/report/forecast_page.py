"""forecast.html: one file that opens anywhere, offline. First what to expect in plain words, then every number."""

from collections.abc import Sequence

from compressor.artifacts.forecast_record import ForecastRecord, PointForecast
from compressor.report.cost_map import name_pair, treatment_map_svg
from compressor.report.forecast_text import (
    choose_pair,
    find_check,
    find_half,
    find_last,
    format_counted,
    format_expected,
    format_parts,
    list_forecast_facts,
    rank_components,
)
from compressor.report.formatting import (
    escape_text,
    format_bytes,
    format_interval,
    format_number,
    format_percent,
    join_names,
    name_model,
)
from compressor.report.html_tables import make_table
from compressor.report.line_chart import COLORS, Curve, Point, curves_svg
from compressor.report.run_page import make_document, tell_reference, write_facts, write_notes, write_provenance


def make_forecast_page(record: ForecastRecord) -> str:
    """The whole page; nothing in it is loaded from elsewhere, and all text of the forecast is escaped."""
    sections = [
        f'<p class="kicker">Forecast</p><h1>{escape_text(name_model(record))}</h1>',
        *(f'<p class="lead">{escape_text(text)}</p>' for text in (_tell_how(record), _tell_sizes(record)) if text),
        write_notes(record.notes),
        write_facts(list_forecast_facts(record)),
        _write_curves(record),
        _write_meaning(record),
        _write_sizes(record),
        _write_map(record),
        _write_ranks(record),
        write_provenance(record),
    ]
    return make_document(f"{name_model(record)} – forecast", sections)


def _tell_how(record: ForecastRecord) -> str:
    names = join_names(list(dict.fromkeys(o.compressor for m in record.components.values() for o in m.options)))
    beginnings = record.reference.prefixes if record.reference else 0
    return (
        f"Nothing was compressed for this page. One backward pass over {beginnings:,} beginnings told what {names} "
        f"would do to each of {len(record.components):,} weight matrices."
    )


def _tell_sizes(record: ForecastRecord) -> str:
    """The size at which half of the text still agrees, and the last that the law is trusted for."""
    most, half, last = format_number(record.base["expected_fdtm"]), find_half(record), find_last(record)
    texts = [
        f"With {format_percent(point.amount)} of the bits taken away the model should agree with the original for "
        f"{format_expected(point)} of {most} tokens, until the first that differs (95 % band "
        f"{format_interval(point.low, point.high)})"
        for point in [half]
        if point
    ]
    if last and last is not half:
        texts.append(
            f"{'with' if texts else 'With'} {format_percent(last.amount)}, the most for which the law is trusted, for "
            f"{format_expected(last)}"
        )
    return "; ".join(texts) + "." if texts else ""


def _write_curves(record: ForecastRecord) -> str:
    together = "all together" if record.curves else "expected"
    curves = [Curve(to_points(record.curve), together, width=3.0, radius=3.0)]
    for index, (name, points) in enumerate(record.curves.items()):
        color = COLORS[index % len(COLORS)]
        curves.append(Curve(to_points(points), name, color, width=1.75, radius=2.5, opacity=0.1))
    marks = [
        Point(check.amount, score.mean, score.low, score.high)
        for check in record.checks
        if (score := check.scores.get("fdtm"))
    ]
    top = float(record.base["expected_fdtm"])
    svg = curves_svg(curves, "expected FDT, tokens", top, marks, "counted", (820, 420), 4)
    if not svg:
        return ""
    caption = "Each dot is a whole plan, the best that was found for its size. Point at it for its numbers."
    if marks:
        caption += " Rings are plans that were really applied, counted on the same beginnings, and undone."
    return f'<h2>What every size would cost</h2><figure class="chart">{svg}<figcaption>{caption}</figcaption></figure>'


def to_points(points: Sequence[PointForecast]) -> list[Point]:
    """As a chart draws them."""
    return [Point(point.amount, point.expected_fdtm, point.low, point.high, point.trusted) for point in points]


def _write_meaning(record: ForecastRecord) -> str:
    last = find_last(record)
    limit = format_number(record.trusted_noise)
    texts = [
        "FDT counts the tokens that the compressed model says exactly as the original does, until the first that "
        f"differs, of {format_number(record.base['expected_fdtm'])}. The band is a 95 % interval over beginnings: how "
        "much other texts would change the number, if the law holds.",
        "The law: each treatment moves the lead of the original's token over its runner-up a little, at every position "
        "by another amount. The mean square of these moves, σ² (close leads count most), adds up over components, and "
        "σ alone decides where the texts are expected to part, because the original's own leads are known.",
        f"It ends where moves are no longer small. Beyond σ = {limit} logits it is not trusted: the model is treated "
        "so hard that effects no longer add up, and it will rather do worse than the dashed lines say. "
        + (f"That is the case above an amount of {format_percent(last.amount)}. " if last else "")
        + "A forecast is no proof: compressor run counts what a plan does, on beginnings that no search has seen.",
    ]
    if stored := _list_unpacked(record):
        texts.append(
            f"What {join_names(stored)} takes away becomes zeros, which are stored like any other weight: the amount "
            "grows, the size on disk does not fall."
        )
    return "<h2>What this means, and where it ends</h2>" + "".join(f"<p>{escape_text(text)}</p>" for text in texts)


def _list_unpacked(record: ForecastRecord) -> list[str]:
    """Compressors that take something away and store as much as before."""
    sizes: dict[str, set[bool]] = {}
    for matrix in record.components.values():
        if matrix.options:
            most = max(option.bytes for option in matrix.options)
            for option in matrix.options:
                sizes.setdefault(option.compressor, set()).add(option.bytes < most * 0.999)
    full = {name for name, smaller in sizes.items() if smaller == {False}}
    return [name for name in sizes if name in full and len(record.curve) > 1]


def _write_sizes(record: ForecastRecord) -> str:
    headings = ["amount", "size", "bits per weight", "σ", "expected FDT", "95 % band"]
    headings += ["counted", "95 % interval"] if record.checks else []
    headings += ["weights treated by", "the law"]
    rows = []
    for point in record.curve:
        row = [format_percent(point.amount, fixed=True), format_bytes(point.bytes)]
        row += [format_number(point.bits_per_weight, 2), format_number(point.noise, 3)]
        row += [format_expected(point), format_interval(point.low, point.high)]
        row += format_counted(find_check(record, point)) if record.checks else []
        rows.append([*row, format_parts(point), "trusted" if point.trusted else "not trusted"])
    return make_table("Every size: the best plan that was found, all compressors together", headings, rows, words=0)


def _write_map(record: ForecastRecord) -> str:
    svg = treatment_map_svg(record.components)
    if not svg:
        return ""
    return (
        "<h2>Which parts can go</h2>"
        '<figure><div class="scroll" tabindex="0" role="region" aria-label="Predicted cost of every treatment">'
        f"{svg}</div><figcaption>A panel for each kind of weight matrix: layers from left to right, treatments from "
        "top to bottom; the darker, the dearer. Point at a cell for its name and numbers; forecast.json "
        "has them all.</figcaption></figure>"
    )


def _write_ranks(record: ForecastRecord) -> str:
    pair = choose_pair(record)
    if pair is None:
        return tell_reference(record.reference)
    tables = []
    for words, ranked in zip(("most", "least"), rank_components(record, pair), strict=True):
        rows = [
            [name, format_number(o.cost), format_interval(o.low, o.high), format_number(o.expected_fdtm, 1)]
            for name, o in ranked
        ]
        caption = f"The {len(rows)} {words} sensitive components, at {name_pair(pair)}"
        tables.append(make_table(caption, ["component", "σ²", "95 % interval", "FDT if it alone is treated"], rows))
    return "".join(tables) + tell_reference(record.reference)
