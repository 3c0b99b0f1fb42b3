"""report.html: one file that opens anywhere, offline. First what became of the model, then every number."""

from collections.abc import Mapping, Sequence

from compressor.artifacts.run_record import Record, RoundRecord
from compressor.report.formatting import (
    format_number,
    format_percent,
    format_score,
    list_facts,
    name_metric,
)
from compressor.report.heat_map import draw_heat_map
from compressor.report.histogram import draw_histogram
from compressor.report.line_chart import Axes, Point, draw_lines
from compressor.report.page import fill_page
from compressor.report.tables import make_components_table, make_rounds_table, make_scores_table
from compressor.report.vega import Picture

MOST_CURVES = 6
Sequences = Mapping[str, Sequence[float]]
"""Metric -> its value for each prefix of the final score."""


def make_page(record: Record, sequences: Sequences | None = None) -> str:
    """The whole page; all text of the run is escaped."""
    metrics = [record.metric(name) for name in record.final.scores] if record.final else []
    return fill_page(
        "run.html",
        record,
        {
            "kind": "Compression report",
            "headline": find_headline(record),
            "facts": list_facts(record),
            "scores": make_scores_table(record),
            "meanings": [(metric.label, metric.summary) for metric in metrics if metric.summary],
            "spreads": _draw_spreads(record, sequences or {}),
            "heat_map": draw_heat_map(record.components) if record.components else None,
            "rounds": make_rounds_table(record),
            "charts": [
                _draw_scores(record),
                *(_draw_search(record, step) for step in record.rounds),
                _draw_training(record),
            ],
            "components": make_components_table(record.components),
        },
    )


def find_headline(record: Record) -> str | None:
    """The metric that says how far the text stays the same: the first that counts tokens and wants many."""
    names = record.final.scores if record.final else {}
    fits = (name for name in names if record.metric(name).unit == "tokens" and record.metric(name).better == "higher")
    return next(fits, None)


def _draw_spreads(record: Record, sequences: Sequences) -> list[Picture]:
    """A histogram for each metric that has a value for each prefix, the headline first."""
    headline, tokens = find_headline(record), record.reference.continuation_tokens if record.reference else None
    found = []
    for name in sorted(sequences, key=lambda name: name != headline):
        counts = record.metric(name).unit == "tokens" and all(value.is_integer() for value in sequences[name])
        found.append(draw_histogram(sequences[name], name_metric(record, name), tokens if counts else None))
    return [picture for picture in found if picture]


def _draw_scores(record: Record) -> Picture | None:
    """The headline metric (else the first) over the amount; None of a single round, which the scores show better."""
    if len(record.rounds) < 2:
        return None
    headline = find_headline(record)
    name = headline or next(iter(record.rounds[-1].scores), None)
    if name is None:
        return None
    label = record.metric(name).label
    top = float(record.reference.continuation_tokens) if headline and record.reference else None
    points = []
    if top is not None and any(name in step.scores for step in record.rounds):
        points.append(Point(0.0, top, top, top, "the original agrees with itself throughout"))
    for number, step in enumerate(record.rounds, start=1):
        if score := step.scores.get(name):
            tip = f"round {number}, {format_percent(step.amount)} removed: {label} {format_score(score)}"
            points.append(Point(step.amount, score.mean, score.low, score.high, tip))
    return draw_lines({"": points}, Axes("bits removed (amount)", name_metric(record, name), top))


def _draw_training(record: Record) -> Picture | None:
    """The loss of the recovery of each round over its steps; None without one."""
    series = {}
    for number, step in enumerate(record.rounds, start=1):
        points = step.recovery.points if step.recovery else []
        for stage in dict.fromkeys(point.stage for point in points):
            found = [point for point in points if point.stage == stage]
            name = f"round {number}, {stage}" if len(record.rounds) > 1 else stage
            series[name] = [
                Point(one.step, one.loss, one.loss, one.loss, f"{name}, step {one.step}: {format_number(one.loss)}")
                for one in found
            ]
    if not series or len(series) > MOST_CURVES:
        return None
    return draw_lines(series, Axes("steps of training", "loss", is_share=False))


def _draw_search(record: Record, step: RoundRecord) -> Picture | None:
    """The best that a round's search had found, over the share of weights treated; None where it does not say."""
    if not step.curve:
        return None
    metric, statistic = record.metric(step.curve[0].metric), step.curve[0].statistic
    points = []
    for point in step.curve:
        tip = f"{point.components} components, {format_percent(point.share)} of the weights: {metric.label} "
        points.append(Point(point.share, point.value, point.value, point.value, tip + format_number(point.value)))
    label = f"best {metric.label} found, {statistic}" + (f", {metric.unit}" if metric.unit else "")
    return draw_lines({"": points}, Axes("share of weights treated", label))
