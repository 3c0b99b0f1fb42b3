"""report.html: one file that opens anywhere, offline. First what became of the model, then every number."""

from collections.abc import Mapping, Sequence

from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_record import FinalRecord, Record, ReferenceRecord, RoundRecord
from compressor.report.formatting import (
    describe_cost,
    describe_expected_cost,
    format_bytes,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    format_seconds,
    list_facts,
    name_compressors,
    name_model,
)
from compressor.report.heat_map import draw_heat_map
from compressor.report.histogram import draw_histogram
from compressor.report.html_tables import (
    list_settings,
    make_components_table,
    make_pairs_table,
    make_rounds_table,
    make_scores_table,
)
from compressor.report.line_chart import Axes, Point, draw_lines
from compressor.report.templating import fill_template
from compressor.report.vega import Picture

Sequences = Mapping[str, Sequence[float]]
"""Metric -> its value for each prefix of the final score."""


def make_page(record: Record, sequences: Sequences | None = None) -> str:
    """The whole page; nothing in it is loaded from elsewhere, and all text of the run is escaped."""
    scores = record.final.scores if record.final else {}
    metrics = [record.metric(name) for name in scores]
    return fill_template(
        "run.html",
        {
            "model": name_model(record),
            "failure": "" if record.final else _tell_failure(record),
            "sentences": [_tell_compression(record, record.final), *_tell_agreement(record)] if record.final else [],
            "facts": list_facts(record),
            "scores": make_scores_table(record, scores) if scores else None,
            "sample": tell_reference(record.reference) if scores else "",
            "meanings": [(metric.label, metric.summary) for metric in metrics if metric.summary],
            "spreads": _draw_spreads(record, sequences or {}),
            "heat_map": draw_heat_map(record.components) if record.components else None,
            "rounds": make_rounds_table(record) if record.rounds else None,
            "charts": _draw_rounds(record),
            "cost": _tell_cost(record),
            "components": make_components_table(record.components) if record.components else None,
            "notes": record.notes,
            "made": describe_making(record),
        },
    )


def find_headline(record: Record) -> str | None:
    """The metric that says how far the text stays the same: the first that counts tokens and wants many."""
    names = record.final.scores if record.final else {}
    fits = (name for name in names if record.metric(name).unit == "tokens" and record.metric(name).better == "higher")
    return next(fits, None)


def _tell_failure(record: Record) -> str:
    word = "This run failed" if record.status == "failed" else f"This run is {record.status}"
    return f"{word}: {record.error or 'there is no result'}"


def _tell_compression(record: Record, final: FinalRecord) -> str:
    matrices, method = f"{len(record.components):,} weight matrices", name_compressors(record)
    what = f"{method} removed {format_percent(final.amount)} of the bits of {matrices}"
    before = record.base.get("bytes")
    if not before:
        return f"{what}."
    if abs(final.bytes / before - 1) < 5e-4 and final.amount > 0:
        return (
            f"The model takes {format_bytes(final.bytes)} on disk, as before: {what}, but "
            "the format that it is saved in stores every weight in full, also a zero."
        )
    change = "smaller" if final.bytes < before else "larger"
    share = format_percent(abs(1 - final.bytes / before))
    return (
        f"The model went from {format_bytes(before)} to {format_bytes(final.bytes)} on disk, {share} {change}: {what}."
    )


def _tell_agreement(record: Record) -> list[str]:
    name, reference = find_headline(record), record.reference
    if name is None or reference is None or record.final is None:
        return []
    score, most = record.final.scores[name], reference.continuation_tokens
    text = f"Both models continued the same {reference.prefixes:,} prefixes. The compressed one "
    if score.min >= most:
        return [f"{text}said the same as the original every time, for all {most} tokens."]
    mean = format_estimate(score.mean, score.low, score.high)
    return [
        f"{text}agrees with the original for {mean} of {most} tokens on average (95 % interval "
        f"{format_interval(score.low, score.high)}), and on the best quarter of the prefixes for "
        f"{format_estimate(score.p75, score.p75_low, score.p75_high)} or more."
    ]


def tell_reference(reference: ReferenceRecord | None) -> str:
    """What was scored, in a few sentences."""
    if reference is None:
        return ""
    text = (
        f"{reference.prefixes:,} prefixes of {reference.prefix_tokens} tokens ({reference.source}), each continued by "
        f"{reference.continuation_tokens} tokens. At {reference.near_ties:,} positions the two best tokens of the "
        f"original are almost equally likely; {reference.mended:,} tokens were corrected so that the original, run "
        "again, says the same."
    )
    if reference.perplexity_text:
        text += f" Perplexity was read on: {reference.perplexity_text}."
    return text


def _draw_spreads(record: Record, sequences: Sequences) -> list[Picture]:
    """A histogram for each metric that has a value for each prefix, the headline first."""
    headline, tokens = find_headline(record), record.reference.continuation_tokens if record.reference else None
    found = []
    for name in sorted(sequences, key=lambda name: name != headline):
        metric = record.metric(name)
        most = tokens if metric.unit == "tokens" and all(value.is_integer() for value in sequences[name]) else None
        label = f"{metric.label}, {metric.unit}" if metric.unit else metric.label
        found.append(draw_histogram(sequences[name], label, most))
    return [picture for picture in found if picture]


def _draw_rounds(record: Record) -> list[Picture]:
    """The headline metric over the amount of each round, and what the search of each round found on its way."""
    charts = [_draw_scores(record), *(_draw_search(record, step) for step in record.rounds)]
    return [chart for chart in charts if chart]


def _draw_scores(record: Record) -> Picture | None:
    """The headline metric (else the first) over the amount; None of a single round, which the scores show better."""
    if len(record.rounds) < 2:
        return None
    headline = find_headline(record)
    name = headline or next(iter(record.rounds[-1].scores), None)
    if name is None:
        return None
    metric = record.metric(name)
    label = f"{metric.label}, {metric.unit}" if metric.unit else metric.label
    points = [
        Point(
            step.amount,
            score.mean,
            score.low,
            score.high,
            f"round {number}, {format_percent(step.amount)} removed: {metric.label} "
            f"{format_estimate(score.mean, score.low, score.high)} ({format_interval(score.low, score.high)})",
        )
        for number, step in enumerate(record.rounds, start=1)
        if (score := step.scores.get(name)) is not None
    ]
    top = float(record.reference.continuation_tokens) if headline and record.reference else None
    if top is not None and points:
        points.insert(0, Point(0.0, top, top, top, "the original agrees with itself throughout"))
    return draw_lines({"": points}, Axes("bits removed (amount)", label, top))


def _draw_search(record: Record, step: RoundRecord) -> Picture | None:
    """The best that a round's search had found, over the share of weights treated; None where it does not say."""
    if not step.curve:
        return None
    metric, statistic = record.metric(step.curve[0].metric), step.curve[0].statistic
    points = [
        Point(
            point.share,
            point.value,
            point.value,
            point.value,
            f"{point.components} components, {format_percent(point.share)} of the weights: "
            f"{metric.label} {format_number(point.value)}",
        )
        for point in step.curve
    ]
    label = f"best {metric.label} found, {statistic}" + (f", {metric.unit}" if metric.unit else "")
    return draw_lines({"": points}, Axes("share of weights treated", label))


def _tell_cost(record: Record) -> str:
    """What was expected before the search, and what it took."""
    if record.expense is None:
        return ""
    text = f"The forecast before the search: {describe_expected_cost(record.expense.forecast)}."
    return f"{text} It took {describe_cost(record.expense.actual)}." if record.expense.actual else text


def describe_making(record: Record | ForecastRecord) -> dict[str, object]:
    """Command, time, versions and settings."""
    phases = {name: format_seconds(seconds) for name, seconds in record.phases.items()}
    versions = {name: str(version) for name, version in record.versions.items()}
    return {
        "command": record.command,
        "phases": make_pairs_table("Time of each phase", phases, ("phase", "time")),
        "versions": make_pairs_table("Versions", versions, ("package", "version")),
        "settings": "\n".join(list_settings(record.config)),
    }
