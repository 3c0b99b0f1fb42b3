"""The map of a forecast: what each treatment of each component is predicted to cost, a panel for each kind."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.artifacts.forecast_record import MatrixForecast, OptionForecast
from compressor.report.formatting import clean_text, format_interval, format_number, format_percent
from compressor.report.heat_map import choose_color
from compressor.report.vega import (
    INK,
    Picture,
    draw_picture,
    make_key,
    make_layer_axis,
    make_row_axis,
    name_layer,
    plot,
    sort_layers,
)

if TYPE_CHECKING:
    import altair as alt

PAGE, ROW_HEIGHT, PANEL_GAP, LABELS = 1080, 15, 18, 110
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

    def list_colors(self) -> list[tuple[str, str]]:
        """Color and label of each power of ten on the scale; of both ends where there is none."""
        powers = [float(power) for power in range(math.ceil(self.low), math.floor(self.high) + 1)]
        costs = [10.0**power for power in powers or (self.low, self.high)]
        return [(choose_color(self.share(cost)), format_number(cost)) for cost in costs]


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


def _make_cell(members: Matrices, pair: Pair, scale: Scale) -> dict[str, str]:
    """The treatment of all components of one kind in one layer: its color, and one line; empty where it is not offered.

    The cost of several components is the mean over those that are known. Without any there is no color.
    """
    found = {name: option for name, matrix in members.items() for option in matrix.options if pair_of(option) == pair}
    if not found:
        return {}
    known = [option for name, option in found.items() if members[name].reached]
    cost = sum(option.cost for option in known) / len(known) if known else math.nan
    first, unreached = next(iter(found)), len(found) - len(known)
    if not known:
        words = "no token came here, nothing is known"
    elif len(found) > 1:
        rest = f"; {unreached} of them no token reached" if unreached else ""
        words = f"mean σ² {format_number(cost)}{rest}"
    else:
        interval = format_interval(known[0].low, known[0].high)
        alone = format_number(known[0].expected_fdtm, 1)
        words = f"σ² {format_number(cost)} ({interval}), alone an expected FDT of {alone}"
    what = first if len(found) == 1 else f"{len(found)} × {first} and its like"
    return {
        "row": clean_text(name_pair(pair)),
        "color": choose_color(scale.share(cost)) if math.isfinite(cost) else "",
        "tip": clean_text(f"{what}, {name_pair(pair)}: {words}"),
    }


def draw_cost_map(matrices: Matrices) -> Picture | None:
    """A panel for each kind, with treatments as rows and layers as columns; None without options.

    Experts of one kind and layer are one cell.
    """
    import altair as alt

    pairs = list_pairs(matrices)
    if not pairs:
        return None
    panels: dict[str, dict[int | None, dict[str, MatrixForecast]]] = defaultdict(lambda: defaultdict(dict))
    for name, matrix in matrices.items():
        panels[matrix.kind][matrix.layer][name] = matrix
    shown = set(pairs)
    scale = Scale.of(option.cost for m in matrices.values() for option in m.options if pair_of(option) in shown)
    columns = max(len(layers) for layers in panels.values())
    abreast, width = choose_layout(len(panels), columns)
    drawn = [
        _make_panel(kind, layers, pairs, scale, width, has_labels=index % abreast == 0)
        for index, (kind, layers) in enumerate(panels.items())
    ]
    map_ = alt.concat(*drawn, columns=abreast, spacing=PANEL_GAP)
    title = "σ² that the treatment alone is predicted to add, in logits²; dashed: no token came there"
    label = f"Predicted cost of {len(pairs)} treatments of {len(matrices)} components, by kind and layer"
    return draw_picture(alt.vconcat(map_, make_key(scale.list_colors(), title), spacing=PANEL_GAP), label)


def choose_layout(panels: int, columns: int) -> tuple[int, int]:
    """How many panels stand side by side, and how wide a cell is."""
    most = int((PAGE - LABELS) // (2 * NARROWEST * columns + PANEL_GAP))
    lines = -(-panels // min(panels, max(1, most)))
    abreast = -(-panels // lines)
    room = (PAGE - LABELS) / abreast - PANEL_GAP
    return abreast, int(min(WIDEST, max(NARROWEST, room / columns)))


def _make_panel(
    kind: str,
    layers: Mapping[int | None, Matrices],
    pairs: Sequence[Pair],
    scale: Scale,
    width: int,
    has_labels: bool,
) -> "alt.LayerChart":
    import altair as alt

    rows = [
        {"layer": name_layer(layer), **cell}
        for layer in sort_layers(layers)
        for pair in pairs
        if (cell := _make_cell(layers[layer], pair, scale))
    ]
    y = make_row_axis(list(map(name_pair, pairs)), gap=0.06, labelFontSize=11)
    title = alt.TitleParams(text=clean_text(kind), anchor="start", frame="group", fontSize=12, offset=2)
    place = {
        "x": make_layer_axis(layers, gap=0.05, title=None, labelFontSize=11),
        "y": y if has_labels else y.axis(None),
        "description": "tip:N",
    }
    cells = []
    if known := [row for row in rows if row["color"]]:
        cells.append(plot(known).mark_rect().encode(fill=alt.Fill("color:N", scale=None), **place))
    if unknown := [row for row in rows if not row["color"]]:
        cells.append(plot(unknown).mark_rect(fill="transparent", stroke=INK, strokeDash=[2, 2]).encode(**place))
    return alt.LayerChart(layer=cells, title=title, width=alt.Step(width), height=alt.Step(ROW_HEIGHT))
