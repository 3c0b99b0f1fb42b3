"""The tables of report.html."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressor.artifacts.run_record import ComponentRecord, Record
from compressor.contracts import Score
from compressor.report.formatting import (
    MISSING,
    base_mean,
    escape_text,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    format_score,
    format_seconds,
    format_unit,
)
from compressor.report.heat_map import group_components

MOST_ROWS = 2000
"""A longer table of components shows one row per kind and layer: a page is for reading, report.json has them all."""


def make_table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table that scrolls sideways on a narrow screen; the first `words` columns are text, the others numbers."""
    marks = [' class="t"' if index < words else "" for index in range(len(headings))]
    head = "".join(
        f'<th scope="col"{mark}>{escape_text(text)}</th>' for mark, text in zip(marks, headings, strict=True)
    )
    lines = []
    for row in rows:
        first, *others = (escape_text(cell) for cell in row)
        cells = "".join(f"<td{mark}>{text}</td>" for mark, text in zip(marks[1:], others, strict=True))
        lines.append(f'<tr><th scope="row"{marks[0]}>{first}</th>{cells}</tr>')
    body = "\n".join(lines)
    name = escape_text(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def make_scores_table(record: Record, scores: Mapping[str, Score]) -> str:
    tokens = record.reference.continuation_tokens if record.reference else None
    has_base = any(base_mean(record, name) is not None for name in scores)
    headings = ["metric", "better", *(["original"] if has_base else []), "value", "95 % interval", "median"]
    headings += ["75th percentile", "95 % interval", "least", "most", "n"]
    rows = []
    for name, score in scores.items():
        metric = record.metric(name)
        rows.append(
            [
                f"{metric.label}, {format_unit(metric, tokens)}" if metric.unit else metric.label,
                metric.better,
                *([format_number(base_mean(record, name))] if has_base else []),
                format_estimate(score.mean, score.low, score.high),
                format_interval(score.low, score.high),
                format_estimate(score.median, score.low, score.high),
                format_estimate(score.p75, score.p75_low, score.p75_high),
                format_interval(score.p75_low, score.p75_high),
                format_number(score.min),
                format_number(score.max),
                str(score.n),
            ]
        )
    return make_table("Scores on prefixes that the search never saw", headings, rows, words=2)


def make_rounds_table(record: Record) -> str:
    names = list(dict.fromkeys(name for step in record.rounds for name in step.scores))
    labels = [record.metric(name).label for name in names]
    compared = any(step.additivity is not None for step in record.rounds)
    rows = [
        [
            str(index),
            format_percent(step.target, fixed=True),
            format_percent(step.amount, fixed=True),
            *(format_score(step.scores[name]) if name in step.scores else MISSING for name in names),
            *([format_number(step.additivity, 2)] if compared else []),
            str(step.trials),
            format_number(step.passes),
            format_seconds(step.seconds),
        ]
        for index, step in enumerate(record.rounds, start=1)
    ]
    caption = "Rounds, scored on the prefixes of the search: value (95 % interval)"
    headings = ["round", "target", "amount", *labels, *(["additivity"] if compared else [])]
    return make_table(caption, [*headings, "trials", "forward passes", "time"], rows, words=0)


def make_components_table(components: Mapping[str, ComponentRecord]) -> str:
    headings = ["component", "kind", "compressor", "layer", "shape", "amount", "zeros", "bits saved", "bits packed"]
    if len(components) <= MOST_ROWS:
        rows = [
            [
                name,
                one.kind,
                one.compressor or MISSING,
                MISSING if one.layer is None else str(one.layer),
                f"{one.shape[0]:,} × {one.shape[1]:,}",
                *_format_sizes(one.amount, one.sparsity, one.bits_per_weight, one.packed_bits_per_weight),
            ]
            for name, one in components.items()
        ]
        return make_table("Where every component ended; bits are per weight", headings, rows, words=3)
    fields = ("amount", "sparsity", "bits_per_weight", "packed_bits_per_weight")
    rows = [
        [
            f"{len(cell.members)} × {kind}",
            kind,
            cell.compressor,
            MISSING if layer is None else str(layer),
            MISSING,
            *_format_sizes(*(cell.mean(field) for field in fields)),
        ]
        for (kind, layer), cell in group_components(components).items()
    ]
    caption = f"{len(components):,} components, as means of a kind and a layer; report.json lists each one"
    return make_table(caption, headings, rows, words=3)


def _format_sizes(amount: float, sparsity: float, saved: float, packed: float) -> list[str]:
    shares = [format_percent(amount, fixed=True), format_percent(sparsity, fixed=True)]
    return [*shares, format_number(saved, 2), format_number(packed, 2)]


def make_pairs_table(caption: str, pairs: Mapping[str, str], headings: tuple[str, str]) -> str:
    return make_table(caption, headings, [[key, value] for key, value in pairs.items()], words=1)


def list_settings(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`data.prefixes=64`, one a line: what a command line would say to get the same."""
    lines = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            lines += list_settings(value, f"{prefix}{key}.")
        else:
            words = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            lines.append(f"{prefix}{key}={words}")
    return lines
