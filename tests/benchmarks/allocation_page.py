"""Renders what `allocation` measured as docs/allocation.md."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

HEAD = """# Which search keeps the text: every table

    python -m tests.benchmarks allocation --keep FOLDER --page docs/allocation.md

Magnitude pruning without training; and round to nearest with widths of 2 to 8 bits, to a mean of 3.25 bits (groups of
64) or 4.5 bits (groups of 32), scales counted. Searches decide on 64 prefixes of 32 + 64 tokens sampled from the base
(amounts per row on 256). Scores are on 256 fresh prefixes of every seed; a seed is another set of prefixes.

`passes` is the cost of the search in forward passes over 64 prefixes. A trial costs one; a backward pass costs four
(forward, recomputation layer by layer, and the gradients of inputs and of weights). Evolution is the small preset.
SDT is of 64 tokens. Differences are paired by prefix, with 95 % intervals.
[Benchmarks](benchmarks.md#which-search-keeps-the-text) says what the tables show together.
"""
SHOWN = {"FDT": "fdtm", "SDT": "sdtm", "KL": "kl", "perplexity": "perplexity"}


def render_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, of rows that are sorted by model and budget."""
    tables = [
        render_table(f"## {model}, {budget.replace('%', ' %')}", list(cases))
        for (model, budget), cases in groupby(rows, lambda row: (row["model"], row["budget"]))
    ]
    return "\n".join([HEAD, *tables])


def render_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The methods of one model at one budget."""
    baseline = next(key.removeprefix("kl − ") for row in rows for key in row if key.startswith("kl − "))
    seeds = max(row["seeds"] for row in rows)
    columns = ["method", "passes", *SHOWN, f"SDT − {baseline}", f"KL − {baseline}"]
    lines = [title, "", "One seed." if seeds == 1 else f"{seeds} seeds.", ""]
    lines += [join_cells(columns), "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row["method"], f"{row['passes']:.0f}", *(format_number(row[name][0]) for name in SHOWN.values())]
        cells += [format_difference(row, f"sdtm − {baseline}", 2), format_difference(row, f"kl − {baseline}", 4)]
        lines.append(join_cells(cells))
    return "\n".join([*lines, ""])


def join_cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def format_number(value: float) -> str:
    """Three digits."""
    return f"{value:.{next((digits for digits, least in enumerate((100, 10, 1, 0.1)) if value >= least), 4)}f}"


def format_difference(row: Mapping[str, Any], key: str, digits: int) -> str:
    """Value and interval, or a dash for the baseline itself."""
    if key not in row:
        return "–"
    value, low, high = (f"{number:+.{digits}f}".replace("-", "−") for number in row[key])
    return f"{value} ({low} … {high})"
