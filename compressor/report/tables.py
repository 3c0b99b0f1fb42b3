"""Tables as data: a template draws them in a page, rich draws them in a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    """Rows of cells, each behind the heading of its column; false without rows.

    A cell of None becomes a dash. A column in which no row has anything else is left out. The first `words` columns are
    text, the others numbers; `commands` stand under their rows.
    """

    caption: str
    cells: Sequence[Sequence[tuple[str, str | None]]]
    words: int = 1
    commands: Sequence[str] = ()
    headings: list[str] = field(init=False)
    rows: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        columns = zip(*self.cells, strict=True)
        kept = [column for column in columns if any(text is not None for _, text in column)]
        self.headings = [column[0][0] for column in kept]
        self.rows = [[MISSING if text is None else text for _, text in row] for row in zip(*kept, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)


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
        drawn.add_row(*map(Text, row))
    return drawn


def make_scores_table(record: Record) -> Table:
    """The scores of the result."""
    rows = [
        [
            ("metric", name_metric(record, name, counts=True)),
            ("compressed", format_estimate(score.mean, score.low, score.high)),
            ("95 % interval", format_interval(score.low, score.high)),
            ("original", format_base(record, name)),
            ("better", record.metric(name).better),
            ("median", format_estimate(score.median, score.low, score.high)),
            ("75th percentile", format_estimate(score.p75, score.p75_low, score.p75_high)),
            ("95 % interval", format_interval(score.p75_low, score.p75_high)),
            ("least", format_number(score.min)),
            ("most", format_number(score.max)),
            ("n", str(score.n)),
        ]
        for name, score in (record.final.scores if record.final else {}).items()
    ]
    return Table("Scores on prefixes that the search never saw", rows)


def make_rounds_table(record: Record) -> Table:
    """A row for each round, with all metrics."""
    names = dict.fromkeys(name for step in record.rounds for name in step.scores)
    rows = [
        [
            ("round", str(index)),
            ("target", format_percent(step.target, fixed=True)),
            ("amount", format_percent(step.amount, fixed=True)),
            *((record.metric(name).label, format_score(step.scores.get(name))) for name in names),
            *(
                (f"{record.metric(name).label} before recovery", format_score(before.get(name)))
                for before in ([step.recovery.before] if step.recovery else [])
                for name in names
            ),
            ("additivity", None if step.additivity is None else format_number(step.additivity, 2)),
            ("trials", str(step.trials)),
            ("forward passes", format_number(step.passes)),
            ("time", format_seconds(step.seconds)),
        ]
        for index, step in enumerate(record.rounds, start=1)
    ]
    return Table("Rounds, scored on the prefixes of the search: value (95 % interval)", rows, words=0)


def make_components_table(components: Mapping[str, ComponentRecord]) -> Table:
    """A row for each component, or for each kind and layer where there are many."""
    if len(components) <= MOST_ROWS:
        caption = "Where every component ended; bits are per weight"
        cells = [Cell(one.kind, one.layer, {name: one}) for name, one in components.items()]
    else:
        caption = f"{len(components):,} components, as means of a kind and a layer; report.json lists each one"
        cells = list(group_components(components).values())
    return Table(caption, [_list_sizes(cell, len(cells) == len(components)) for cell in cells], words=3)


def _list_sizes(cell: Cell, is_alone: bool) -> list[tuple[str, str]]:
    """The row of a single component, or of all components of one kind in one layer."""
    name, component = next(iter(cell.members.items()))
    return [
        ("component", name if is_alone else f"{len(cell.members)} × {cell.kind}"),
        ("kind", cell.kind),
        ("compressor", (component.compressor or MISSING) if is_alone else cell.compressor),
        ("layer", MISSING if cell.layer is None else str(cell.layer)),
        ("shape", "{:,} × {:,}".format(*component.shape) if is_alone else MISSING),
        ("amount", format_percent(cell.mean("amount"), fixed=True)),
        ("zeros", format_percent(cell.mean("sparsity"), fixed=True)),
        ("bits in the files", format_number(cell.mean("bits_per_weight"), 2)),
        ("bits if packed", format_number(cell.mean("packed_bits_per_weight"), 2)),
    ]
