"""report.html: one file that opens anywhere, offline. First what happened in plain words, then every number."""

from collections.abc import Mapping, Sequence

from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_record import FinalRecord, Record, ReferenceRecord, RoundRecord
from compressor.report.formatting import (
    escape_text,
    format_bytes,
    format_estimate,
    format_interval,
    format_percent,
    format_seconds,
    list_facts,
    name_compressors,
    name_model,
    tell_expense,
    tell_forecast,
)
from compressor.report.heat_map import heat_map_svg
from compressor.report.html_tables import (
    list_settings,
    make_components_table,
    make_pairs_table,
    make_rounds_table,
    make_scores_table,
)
from compressor.report.line_chart import Point, line_chart_svg
from compressor.report.style import STYLE


def make_page(record: Record) -> str:
    """The whole page; nothing in it is loaded from elsewhere, and all text of the run is escaped."""
    sections = [
        _write_head(record),
        write_notes(record.notes),
        write_facts(list_facts(record)),
        _write_heat_map(record),
        _write_scores(record),
        _write_rounds(record),
        _write_components(record),
        write_provenance(record),
    ]
    return make_document(f"{name_model(record)} – compression report", sections)


def make_document(title: str, sections: Sequence[str]) -> str:
    """A page of these sections, the empty ones left out."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # The page is a file of numbers: no script and no foreign resource has any business in it.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def find_headline(record: Record) -> str | None:
    """The metric that says how far the text stays the same: the first that counts tokens and wants many."""
    names = record.final.scores if record.final else {}
    fits = (name for name in names if record.metric(name).unit == "tokens" and record.metric(name).better == "higher")
    return next(fits, None)


def _write_head(record: Record) -> str:
    head = f'<p class="kicker">Compression report</p><h1>{escape_text(name_model(record))}</h1>'
    if record.final is None:
        word = "This run failed" if record.status == "failed" else f"This run is {record.status}"
        return f'{head}<p class="failed">{escape_text(word)}: {escape_text(record.error or "there is no result")}</p>'
    sentences = [_tell_compression(record, record.final), _tell_agreement(record, record.final)]
    return head + "".join(f'<p class="lead">{escape_text(text)}</p>' for text in sentences if text)


def _tell_compression(record: Record, final: FinalRecord) -> str:
    matrices, method = f"{len(record.components):,} weight matrices", name_compressors(record)
    text = f"{format_percent(final.amount)} of the bits of {matrices} were taken away by {method}."
    before = record.base.get("bytes")
    if not before:
        return text
    if abs(final.bytes / before - 1) < 5e-4 and final.amount > 0:
        return (
            f"{text} On disk the model still takes {format_bytes(final.bytes)}: "
            "the format that it is saved in stores every weight in full, also a zero."
        )
    return f"{text} On disk it went from {format_bytes(before)} to {format_bytes(final.bytes)}."


def _tell_agreement(record: Record, final: FinalRecord) -> str:
    name, reference = find_headline(record), record.reference
    if name is None or reference is None:
        return ""
    score, most = final.scores[name], reference.continuation_tokens
    text = f"Both models continued the same {reference.prefixes:,} beginnings. The compressed one "
    if score.min >= most:
        return f"{text}said the same as the original every time, for all {most} tokens."
    mean = format_estimate(score.mean, score.low, score.high)
    return (
        f"{text}agrees with the original for {mean} of {most} tokens on average (95 % interval "
        f"{format_interval(score.low, score.high)}), and on the best quarter of the beginnings for "
        f"{format_estimate(score.p75, score.p75_low, score.p75_high)} or more."
    )


def write_notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape_text(note)}</li>" for note in notes)
    return f'<ul class="notes" aria-label="Notes">{items}</ul>' if items else ""


def write_facts(facts: Mapping[str, str]) -> str:
    items = "".join(
        f"<div><dt>{escape_text(name)}</dt><dd>{escape_text(words)}</dd></div>" for name, words in facts.items()
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _write_heat_map(record: Record) -> str:
    if not record.components:
        return ""
    return (
        "<h2>What was taken away, and where</h2>"
        '<figure><div class="scroll" tabindex="0" role="region" aria-label="Heat map of components by layer">'
        f"{heat_map_svg(record.components)}</div>"
        "<figcaption>Each cell is one kind of weight matrix in one layer (several experts: their mean). "
        "Point at it for its name and numbers; the table of components below has them all.</figcaption></figure>"
    )


def _write_scores(record: Record) -> str:
    if record.final is None or not record.final.scores:
        return ""
    metrics = [metric for name in record.final.scores if (metric := record.metric(name)).summary]
    meanings = "".join(
        f"<li><strong>{escape_text(metric.label)}</strong>: {escape_text(metric.summary)}</li>" for metric in metrics
    )
    legend = f"<details><summary>What the metrics mean</summary><ul>{meanings}</ul></details>" if meanings else ""
    return f"<h2>Scores</h2>{make_scores_table(record, record.final.scores)}{tell_reference(record.reference)}{legend}"


def tell_reference(reference: ReferenceRecord | None) -> str:
    """What was scored, in a sentence or two."""
    if reference is None:
        return ""
    text = (
        f"{reference.prefixes:,} prefixes of {reference.prefix_tokens} tokens ({reference.source}), each continued by "
        f"{reference.continuation_tokens} tokens. {reference.near_ties:,} near ties of the original, "
        f"{reference.mended:,} tokens mended so that it agrees with itself."
    )
    if reference.perplexity_text:
        text += f" Perplexity was read on: {reference.perplexity_text}."
    return f'<p class="quiet">{escape_text(text)}</p>'


def _write_rounds(record: Record) -> str:
    if not record.rounds:
        return ""
    charts = [_draw_rounds(record), *(_draw_search(record, step) for step in record.rounds)]
    figures = "".join(f'<figure class="chart">{chart}</figure>' for chart in charts if chart)
    return f"<h2>Rounds</h2>{figures}{make_rounds_table(record)}{_tell_cost(record)}"


def _tell_cost(record: Record) -> str:
    """What was forecast before the search, and what it took."""
    if record.expense is None:
        return ""
    text = f"The forecast before the search: {tell_forecast(record.expense.forecast)}."
    if record.expense.actual:
        text += f" It took {tell_expense(record.expense.actual)}."
    return f'<p class="quiet">{escape_text(text)}</p>'


def _draw_rounds(record: Record) -> str:
    """The headline metric (else the first) over the amount; empty where there is too little to draw."""
    headline = find_headline(record)
    name = headline or next(iter(record.rounds[-1].scores), None)
    if name is None:
        return ""
    found = [(step.amount, step.scores[name]) for step in record.rounds if name in step.scores]
    points = [Point(amount, score.mean, score.low, score.high) for amount, score in found]
    top = float(record.reference.continuation_tokens) if headline and record.reference else None
    if top is not None:
        # Untouched, the model agrees with itself throughout: that is where every curve begins.
        points.insert(0, Point(0.0, top, top, top))
    metric = record.metric(name)
    return line_chart_svg(points, f"{metric.label}, {metric.unit}" if metric.unit else metric.label, top)


def _draw_search(record: Record, step: RoundRecord) -> str:
    """The best that a round's search had found, over the share of weights treated; empty where it does not say."""
    if not step.curve:
        return ""
    points = [Point(point.share, point.value, point.value, point.value) for point in step.curve]
    metric, statistic = record.metric(step.curve[0].metric), step.curve[0].statistic
    label = f"best {metric.label} found, {statistic}" + (f", {metric.unit}" if metric.unit else "")
    return line_chart_svg(points, label, axis="share of weights treated")


def _write_components(record: Record) -> str:
    if not record.components:
        return ""
    table = make_components_table(record.components)
    return f"<h2>Components</h2><details><summary>Show the table of components</summary>{table}</details>"


def write_provenance(record: Record | ForecastRecord) -> str:
    """Command, time, versions and settings."""
    phases = {name: format_seconds(seconds) for name, seconds in record.phases.items()}
    versions = {name: str(version) for name, version in record.versions.items()}
    settings = "\n".join(list_settings(record.config))
    parts = [
        "<h2>How it was made</h2>",
        f"<p><code>{escape_text(record.command)}</code></p>",
        make_pairs_table("Time of each phase", phases, ("phase", "time")) if phases else "",
        make_pairs_table("Versions", versions, ("package", "version")) if versions else "",
        f"<details><summary>All settings</summary><pre>{escape_text(settings)}</pre></details>" if settings else "",
    ]
    return "".join(parts)
