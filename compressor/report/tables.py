"""Tables as data: a template draws them in a page, rich draws them in a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import rich.table
from rich import box
from rich.text import Text

from compressor.artifacts.run_record import ComponentRecord, Record
from compressor.report.formatting import (
    MISSING,
    format_base,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    format_score,
    format_seconds,
    name_metric,
)
from compressor.report.heat_map import Cell, group_components

MOST_ROWS = 2000
"""A longer table of components shows one row per kind and layer: a page is for reading, report.json has them all."""


@dataclass
class Table:
    """The first `words` columns are text, the others numbers; `commands` stand under their rows.

    A cell of None becomes a dash. A column in which no row has anything else is left out.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    words: int = 1
    commands: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.headings) for row in self.rows), self.caption
        unknown = {index for index in range(len(self.headings)) if all(row[index] is None for row in self.rows)}
        kept = [index for index in range(len(self.headings)) if index not in unknown or not self.rows]
        self.headings = [self.headings[index] for index in kept]
        self.rows = [[MISSING if row[index] is None else row[index] for index in kept] for row in self.rows]


def draw_in_terminal(table: Table) -> rich.table.Table:
    """Without edges and padding, so that it fits into 80 columns."""
    drawn = rich.table.Table(
        title=Text(table.caption) if table.caption else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, heading in enumerate(table.headings):
        if index < table.words:
            drawn.add_column(heading, overflow="fold")
        else:
            drawn.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(cell or "") for cell in row))
    return drawn


def make_scores_table(record: Record) -> Table | None:
    """The scores of the result; None where there are none."""
    if record.final is None or not record.final.scores:
        return None
    headings = ["metric", "compressed", "95 % interval", "original", "better", "median"]
    headings += ["75th percentile", "95 % interval", "least", "most", "n"]
    rows = [
        [
            name_metric(record, name, counts=True),
            format_estimate(score.mean, score.low, score.high),
            format_interval(score.low, score.high),
            format_base(record, name),
            record.metric(name).better,
            format_estimate(score.median, score.low, score.high),
            format_estimate(score.p75, score.p75_low, score.p75_high),
            format_interval(score.p75_low, score.p75_high),
            format_number(score.min),
            format_number(score.max),
            str(score.n),
        ]
        for name, score in record.final.scores.items()
    ]
    return Table("Scores on prefixes that the search never saw", headings, rows)


def make_rounds_table(record: Record) -> Table | None:
    """A row for each round, with all metrics; None without rounds."""
    if not record.rounds:
        return None
    names = list(dict.fromkeys(name for step in record.rounds for name in step.scores))
    rows = [
        [
            str(index),
            format_percent(step.target, fixed=True),
            format_percent(step.amount, fixed=True),
            *(format_score(step.scores[name]) if name in step.scores else MISSING for name in names),
            None if step.additivity is None else format_number(step.additivity, 2),
            str(step.trials),
            format_number(step.passes),
            format_seconds(step.seconds),
        ]
        for index, step in enumerate(record.rounds, start=1)
    ]
    headings = ["round", "target", "amount", *(record.metric(name).label for name in names), "additivity"]
    headings += ["trials", "forward passes", "time"]
    caption = "Rounds, scored on the prefixes of the search: value (95 % interval)"
    return Table(caption, headings, rows, words=0)


def make_components_table(components: Mapping[str, ComponentRecord]) -> Table | None:
    """A row for each component, or for each kind and layer where there are many; None without components."""
    if not components:
        return None
    headings = ["component", "kind", "compressor", "layer", "shape", "amount", "zeros", "bits in the files"]
    headings += ["bits if packed"]
    if len(components) <= MOST_ROWS:
        caption = "Where every component ended; bits are per weight"
        rows = [
            _make_row(name, one.compressor or MISSING, "{:,} × {:,}".format(*one.shape), Cell.of(name, one))
            for name, one in components.items()
        ]
    else:
        caption = f"{len(components):,} components, as means of a kind and a layer; report.json lists each one"
        rows = [
            _make_row(f"{len(cell.members)} × {cell.kind}", cell.compressor, MISSING, cell)
            for cell in group_components(components).values()
        ]
    return Table(caption, headings, rows, words=3)


def _make_row(name: str, compressor: str, shape: str, cell: Cell) -> list[str]:
    return [
        name,
        cell.kind,
        compressor,
        MISSING if cell.layer is None else str(cell.layer),
        shape,
        format_percent(cell.mean("amount"), fixed=True),
        format_percent(cell.mean("sparsity"), fixed=True),
        format_number(cell.mean("bits_per_weight"), 2),
        format_number(cell.mean("packed_bits_per_weight"), 2),
    ]
