"""The picture of a forecast: what each treatment of each component would cost, one panel a kind, as one SVG."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from compressor.artifacts.forecast_record import MatrixForecast, OptionForecast
from compressor.report.formatting import escape_text, format_interval, format_number, format_percent
from compressor.report.heat_map import ASIDE, CHARACTER_WIDTH, FONT, GAP, INK, TEXT_STYLE, choose_color

PAGE, TOP, ROW_HEIGHT, PANEL_GAP, BREAK, LEGEND_HEIGHT = 1080, 40, 15, 22, 5, 66
NARROWEST, WIDEST = 10, 34
MOST_ROWS = 10
"""A compressor with more amounts has every second one shown, or fewer."""
DECADES = 8
"""What costs less than the dearest by more powers of ten has the palest color."""

Matrices = Mapping[str, MatrixForecast]
Pair = tuple[str, float]
"""A compressor and an amount."""


@dataclass(frozen=True)
class Scale:
    """Costs to shares of the color scale, by their logarithms to the base of ten, from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def of(cls, costs: Iterable[float]) -> "Scale":
        """From the costs above 0, over half a power of ten at least."""
        known = [math.log10(cost) for cost in costs if cost > 0 and math.isfinite(cost)]
        high = max(known, default=0.0)
        return cls(min(high - 0.5, max(high - DECADES, min(known, default=high))), high)

    def share(self, cost: float) -> float:
        """In [0, 1]; a cost of nothing is 0."""
        if cost <= 0:
            return 0.0
        return min(1.0, max(0.0, (math.log10(cost) - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class Cell:
    """One treatment of all components of one kind in one layer."""

    names: Sequence[str]
    options: Sequence[OptionForecast]
    unreached: int

    @property
    def cost(self) -> float:
        """σ², the mean over components that are known; NaN where none is."""
        return sum(option.cost for option in self.options) / len(self.options) if self.options else math.nan

    def describe(self, pair: Pair) -> str:
        """One line: what, by what, and what it would cost."""
        what = self.names[0] if len(self.names) == 1 else f"{len(self.names)} × {self.names[0]} and its like"
        head = f"{what}, {name_pair(pair)}"
        if not self.options:
            return f"{head}: no token came here, nothing is known"
        rest = f"; {self.unreached} of them no token reached" if self.unreached else ""
        if len(self.names) > 1:
            return f"{head}: mean σ² {format_number(self.cost)}{rest}"
        (option,) = self.options
        return (
            f"{head}: σ² {format_number(option.cost)} ({format_interval(option.low, option.high)}), "
            f"alone an expected FDT of {format_number(option.expected_fdtm, 1)}"
        )


def name_pair(pair: Pair) -> str:
    return f"{pair[0]} {format_percent(pair[1])}"


def pair_of(option: OptionForecast) -> Pair:
    """Its compressor and amount; amounts that differ by rounding are the same."""
    return option.compressor, round(option.amount, 6)


def list_pairs(matrices: Matrices) -> list[Pair]:
    """The treatments to show, by compressor in order, amounts ascending; amounts of 1 leave nothing, and go unshown."""
    amounts: dict[str, set[float]] = defaultdict(set)
    for matrix in matrices.values():
        for option in matrix.options:
            amounts[option.compressor].add(round(option.amount, 6))
    pairs: list[Pair] = []
    for compressor, found in amounts.items():
        ordered = sorted(amount for amount in found if amount < 1 or len(found) == 1)
        every = -(-len(ordered) // MOST_ROWS)
        pairs += [(compressor, amount) for amount in ordered[every - 1 :: every]]
    return pairs


def find_cell(members: Mapping[str, MatrixForecast], pair: Pair) -> Cell | None:
    """The cell of a treatment; None where it is not offered."""
    found = {name: option for name, matrix in members.items() for option in matrix.options if pair_of(option) == pair}
    if not found:
        return None
    known = [option for name, option in found.items() if members[name].reached]
    return Cell(list(found), known, len(found) - len(known))


@dataclass(frozen=True)
class Layout:
    """Where panels and cells go: `abreast` panels of `columns` cells beside the names of the rows."""

    pairs: Sequence[Pair]
    panels: int
    columns: int

    @property
    def labels(self) -> float:
        return 12 + CHARACTER_WIDTH * max(len(name_pair(pair)) for pair in self.pairs)

    @property
    def lines(self) -> int:
        most = int((PAGE - self.labels) // (2 * NARROWEST * self.columns + PANEL_GAP))
        return -(-self.panels // min(self.panels, max(1, most)))

    @property
    def abreast(self) -> int:
        return -(-self.panels // self.lines)

    @property
    def cell(self) -> int:
        """Width of a cell."""
        room = (PAGE - self.labels) / self.abreast - PANEL_GAP - ASIDE
        return int(min(WIDEST, max(NARROWEST, room / self.columns)))

    @property
    def height(self) -> int:
        """Of a panel."""
        return self.top(len(self.pairs) - 1) + ROW_HEIGHT + PANEL_GAP

    @property
    def width(self) -> float:
        return self.labels + self.abreast * (self.cell * self.columns + ASIDE + PANEL_GAP)

    def place(self, panel: int) -> tuple[float, int]:
        x = self.labels + (self.cell * self.columns + ASIDE + PANEL_GAP) * (panel % self.abreast)
        return x, self.height * (panel // self.abreast)

    def top(self, row: int) -> int:
        """Of a row in its panel; compressors are set apart."""
        breaks = sum(pair[0] != before[0] for before, pair in itertools.pairwise(self.pairs[: row + 1]))
        return TOP + ROW_HEIGHT * row + BREAK * breaks


def treatment_map_svg(matrices: Matrices) -> str:
    """A standalone SVG: a panel for each kind, with treatments as rows and layers as columns; empty without options.

    Experts of one kind and layer are one cell. Point at a cell to read its name and numbers.
    """
    pairs = list_pairs(matrices)
    if not pairs:
        return ""
    panels: dict[str, dict[int | None, dict[str, MatrixForecast]]] = defaultdict(lambda: defaultdict(dict))
    for name, matrix in matrices.items():
        panels[matrix.kind][matrix.layer][name] = matrix
    layout = Layout(pairs, len(panels), max(len(layers) for layers in panels.values()))
    shown = set(pairs)
    scale = Scale.of(option.cost for m in matrices.values() for option in m.options if pair_of(option) in shown)
    parts = []
    for index, (kind, layers) in enumerate(panels.items()):
        x, y = layout.place(index)
        if index % layout.abreast == 0:
            parts += [_draw_label(pair, layout.labels, y + layout.top(row)) for row, pair in enumerate(pairs)]
        parts += _draw_panel(kind, layers, layout, scale, x, y)
    bottom = layout.height * layout.lines
    parts += _draw_legend(scale, layout.labels, bottom + 4)
    width, height = max(layout.width, layout.labels + 420), bottom
    name = f"Predicted cost of {len(pairs)} treatments of {len(matrices)} components, by kind and layer"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height + LEGEND_HEIGHT}" viewBox="0 0 '
        f'{width:.0f} {height + LEGEND_HEIGHT}" role="img" aria-label="{name}" font-family="{FONT}" font-size="12">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _draw_label(pair: Pair, right: float, y: float) -> str:
    return (
        f'<text x="{right - 8:.1f}" y="{y + 11}" text-anchor="end" font-size="11" {TEXT_STYLE}>'
        f"{escape_text(name_pair(pair))}</text>"
    )


def _draw_panel(
    kind: str, layers: Mapping[int | None, Matrices], layout: Layout, scale: Scale, x: float, y: float
) -> Iterator[str]:
    yield f'<text x="{x:.1f}" y="{y + 14}" font-weight="600" {TEXT_STYLE}>{escape_text(kind)}</text>'
    ordered = sorted(layers, key=lambda layer: (layer is None, layer or 0))
    digits = max(len(_name_layer(layer)) for layer in ordered)
    every = max(1, math.ceil((digits * CHARACTER_WIDTH + 4) / layout.cell)) if None not in ordered else 1
    for column, layer in enumerate(ordered):
        left = x + layout.cell * column + (ASIDE if layer is None and column else 0)
        if column % every == 0:
            middle = left + (layout.cell - GAP) / 2
            yield (
                f'<text x="{middle:.1f}" y="{y + 33}" text-anchor="middle" font-size="11" {TEXT_STYLE}>'
                f"{_name_layer(layer)}</text>"
            )
        for row, pair in enumerate(layout.pairs):
            cell = find_cell(layers[layer], pair)
            if cell is not None:
                yield _draw_cell(cell, pair, scale, left, y + layout.top(row), layout.cell)


def _name_layer(layer: int | None) -> str:
    return "other" if layer is None else str(layer)


def _draw_cell(cell: Cell, pair: Pair, scale: Scale, x: float, y: float, width: int) -> str:
    known = math.isfinite(cell.cost)
    look = f'fill="{choose_color(scale.share(cell.cost))}"' if known else f'fill="none" stroke="{INK}"'
    dashes = "" if known else ' stroke-dasharray="2 2"'
    return (
        f"<g><title>{escape_text(cell.describe(pair))}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width - 1}" height="{ROW_HEIGHT - 1}" {look}{dashes}/></g>'
    )


def _draw_legend(scale: Scale, left: float, y: float, width: int = 320, steps: int = 64) -> Iterator[str]:
    step = width / steps
    for index in range(steps):
        yield (
            f'<rect x="{left + step * index:.1f}" y="{y}" width="{step:.1f}" height="10" shape-rendering="crispEdges"'
            f' fill="{choose_color((index + 0.5) / steps)}"/>'
        )
    for power in range(math.ceil(scale.low), math.floor(scale.high) + 1):
        x = left + width * (power - scale.low) / (scale.high - scale.low)
        text = f"{10.0**power:g}" if -4 < power < 5 else f"1e{power}"
        yield f'<text x="{x:.1f}" y="{y + 24}" text-anchor="middle" font-size="11" {TEXT_STYLE}>{text}</text>'
    yield (
        f'<text x="{left:.1f}" y="{y + 46}" {TEXT_STYLE}>σ² that the treatment alone is predicted to add, in logits²;'
        " dashed: no token came there</text>"
    )
