"""The tables of a page, as data for the template that draws them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.artifacts.run_record import ComponentRecord, Record
from compressor.contracts import Score
from compressor.report.formatting import (
    MISSING,
    base_mean,
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


@dataclass(frozen=True)
class HtmlTable:
    """The first `words` columns are text, the others numbers; `commands` stand under their rows."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    commands: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.headings) for row in self.rows), self.caption


def make_scores_table(record: Record, scores: Mapping[str, Score]) -> HtmlTable:
    tokens = record.reference.continuation_tokens if record.reference else None
    has_base = any(base_mean(record, name) is not None for name in scores)
    headings = ["metric", "compressed", "95 % interval", *(["original"] if has_base else []), "better", "median"]
    headings += ["75th percentile", "95 % interval", "least", "most", "n"]
    rows = []
    for name, score in scores.items():
        metric = record.metric(name)
        rows.append(
            [
                f"{metric.label}, {format_unit(metric, tokens)}" if metric.unit else metric.label,
                format_estimate(score.mean, score.low, score.high),
                format_interval(score.low, score.high),
                *([format_number(base_mean(record, name))] if has_base else []),
                metric.better,
                format_estimate(score.median, score.low, score.high),
                format_estimate(score.p75, score.p75_low, score.p75_high),
                format_interval(score.p75_low, score.p75_high),
                format_number(score.min),
                format_number(score.max),
                str(score.n),
            ]
        )
    return HtmlTable("Scores on prefixes that the search never saw", headings, rows)


def make_rounds_table(record: Record) -> HtmlTable:
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
    return HtmlTable(caption, [*headings, "trials", "forward passes", "time"], rows, words=0)


def make_components_table(components: Mapping[str, ComponentRecord]) -> HtmlTable:
    headings = ["component", "kind", "compressor", "layer", "shape", "amount", "zeros", "bits in the files"]
    headings += ["bits if packed"]
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
        return HtmlTable("Where every component ended; bits are per weight", headings, rows, words=3)
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
    return HtmlTable(caption, headings, rows, words=3)


def _format_sizes(amount: float, sparsity: float, saved: float, packed: float) -> list[str]:
    shares = [format_percent(amount, fixed=True), format_percent(sparsity, fixed=True)]
    return [*shares, format_number(saved, 2), format_number(packed, 2)]


def make_pairs_table(caption: str, pairs: Mapping[str, str], headings: tuple[str, str]) -> HtmlTable | None:
    """None without pairs."""
    return HtmlTable(caption, headings, [[key, value] for key, value in pairs.items()]) if pairs else None


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
