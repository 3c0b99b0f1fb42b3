"""The report of a run: report.json for programs, report.html and a table for people; and back from report.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.table
from rich.console import Group, RenderableType
from rich.text import Text

from compressor.artifacts.files import parse_json, read_json, read_regular, write_json, write_text
from compressor.artifacts.from_json import rebuild
from compressor.artifacts.run_folder import claim_files
from compressor.artifacts.run_record import Record
from compressor.contracts import Score
from compressor.errors import OutputError
from compressor.report.formatting import (
    format_base,
    format_estimate,
    format_interval,
    format_percent,
    list_facts,
    name_compressors,
    name_metric,
    name_model,
)
from compressor.report.run_page import make_page
from compressor.report.tables import Table, draw_in_terminal

JSON_NAME, HTML_NAME, SEQUENCES_NAME = "report.json", "report.html", "sequences.jsonl"
SHOWN_FIRST = ("fdtm", "sdtm", "divergent_perplexity", "kl")
LARGEST = 2**63
"""Values of prefixes are counts, probabilities and logarithms; a larger number is damage."""
MOST_METRICS = 4
"""So many metrics are shown in a terminal, these before others."""


def write_report(record: Record, folder: Path) -> None:
    """Put report.json and report.html into `folder`, each whole or not at all; raises OutputError."""
    claim_files(folder, [JSON_NAME])
    write_json(folder / JSON_NAME, record.to_json())
    claim_files(folder, [HTML_NAME])
    write_text(folder / HTML_NAME, make_page(record, read_sequences(folder)))


def read_sequences(folder: Path) -> dict[str, list[float]]:
    """Metric -> its value for each prefix, from sequences.jsonl; empty where there is none that can be read."""
    try:
        lines = read_regular(folder / SEQUENCES_NAME).decode("utf-8").splitlines()
        rows = [parse_json(line) for line in lines if line]
    except (OSError, ValueError):
        return {}
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            if name != "index" and isinstance(value, int | float) and abs(value) < LARGEST:
                values.setdefault(name, []).append(float(value))
    return values


def read_report(folder: Path) -> Record:
    """The record that `write_report` put there; raises OutputError where it is missing, cut off or something else.

    Numbers that were not finite come back as NaN. Fields of a later version are passed over.
    """
    path = folder / JSON_NAME
    data = read_json(path)
    try:
        return rebuild(Record, data)
    except (TypeError, ValueError) as error:
        raise OutputError(f"{path} is not a report of this version: {error}; run again") from error


def summarize_run(record: Record) -> Group:
    """The tables at the end of a run: four scores with 95 % intervals, then what the compression came to."""
    title, final = Text(name_model(record), style="bold"), record.final
    if final is None:
        return Group(title, Text(f"{record.status}: {record.error or 'there is no result'}"))
    title.append(f": {name_compressors(record)} removed {format_percent(final.amount)} of the bits")
    chosen, others = choose_metrics(list(final.scores))
    parts: list[RenderableType] = [title]
    if chosen:
        parts.append(draw_in_terminal(_make_scores(record, {name: final.scores[name] for name in chosen})))
    if others:
        names = ", ".join(record.metric(name).label for name in others)
        parts.append(Text(f"In {HTML_NAME} too: {names}", style="dim"))
    facts = rich.table.Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    for fact in list_facts(record):
        words = Text(fact.words)
        facts.add_row(fact.name, words.append(f"  {fact.meaning}", style="dim") if fact.meaning else words)
    return Group(*parts, Text(""), facts)


def choose_metrics(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that a terminal of 80 columns has room for, and the others; both in the order given."""
    ranked = sorted(names, key=lambda name: SHOWN_FIRST.index(name) if name in SHOWN_FIRST else len(SHOWN_FIRST))
    chosen = set(ranked[:MOST_METRICS])
    return [name for name in names if name in chosen], [name for name in names if name not in chosen]


def _make_scores(record: Record, scores: Mapping[str, Score]) -> Table:
    rows = [
        [
            ("", name_metric(record, name, counts=True)),
            ("compressed", format_estimate(score.mean, score.low, score.high)),
            ("95 % interval", format_interval(score.low, score.high)),
            ("original", format_base(record, name)),
            ("75th percentile", format_estimate(score.p75, score.p75_low, score.p75_high)),
        ]
        for name, score in scores.items()
    ]
    return Table("", rows)
