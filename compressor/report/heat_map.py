"""The heat map of a compressed model: kind of component by layer, coloured by the share of bits removed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.artifacts.run_record import ComponentRecord
from compressor.report.formatting import clean_text, format_number, format_percent
from compressor.report.vega import (
    INK,
    Picture,
    draw_picture,
    draw_standalone,
    make_key,
    make_layer_axis,
    make_row_axis,
    name_layer,
    plot,
)

if TYPE_CHECKING:
    import altair as alt

ROW_HEIGHT = 26
NUMBER_WIDTH = 26
"""A cell at least this wide has its number printed."""
CELL_WIDTHS = {12: 44, 24: 34, 48: NUMBER_WIDTH}
"""Columns -> the width of a cell where there are at most so many: a small model fills its place."""
NARROWEST = 14
"""The width of a cell where there are more columns, so that a large model stays on a page."""

Components = Mapping[str, ComponentRecord]


@dataclass
class Cell:
    """All components of one kind in one layer: one matrix, or as many as there are experts."""

    kind: str
    layer: int | None
    members: dict[str, ComponentRecord]

    def mean(self, field: str) -> float:
        """Over weights, as every mean of a report."""
        weights = sum(member.parameters for member in self.members.values())
        total = math.fsum(getattr(member, field) * member.parameters for member in self.members.values())
        return total / weights if weights else math.nan

    @property
    def compressor(self) -> str:
        names = sorted({member.compressor or "untouched" for member in self.members.values()})
        return " and ".join(names)

    def describe(self) -> str:
        """One line: what, how much, by what, and what it came to."""
        amounts = [member.amount for member in self.members.values()]
        where = f"layer {self.layer}" if self.layer is not None else "outside the layers"
        if len(amounts) == 1:
            head = f"{next(iter(self.members))} ({self.kind}, {where}): amount {format_percent(amounts[0])}"
        else:
            spread = f"{format_percent(min(amounts))} to {format_percent(max(amounts))}"
            head = (
                f"{len(amounts)} × {self.kind}, {where}: mean amount {format_percent(self.mean('amount'))} ({spread})"
            )
        bits = format_number(round(self.mean("packed_bits_per_weight"), 3))
        return f"{head}, {self.compressor}, sparsity {format_percent(self.mean('sparsity'))}, {bits} bits per weight"


def group_components(components: Components) -> dict[tuple[str, int | None], Cell]:
    """Kind and layer -> cell, in model order."""
    cells: dict[tuple[str, int | None], Cell] = {}
    for name, one in components.items():
        cells.setdefault((one.kind, one.layer), Cell(one.kind, one.layer, {})).members[name] = one
    return cells


def choose_color(amount: float) -> str:
    """`#rrggbb` of an amount in [0, 1]: from pale yellow by green to dark blue.

    Lightness falls evenly from 0.96 to 0.30 in OKLab, so that the order also shows without any sense of colour.
    Source: Ottosson, A perceptual color space for image processing, 2020.
    """
    share = min(1.0, max(0.0, amount))
    lightness = 0.96 - 0.66 * share
    hue = math.radians(105 + 160 * share)
    chroma = 0.05 + 0.07 * math.sin(math.pi * min(1.0, share * 1.2 + 0.1) / 1.2)
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{_encode_channel(value):02x}" for value in linear)


def _encode_channel(linear: float) -> int:
    value = min(1.0, max(0.0, linear))
    encoded = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    return round(255 * encoded)


def choose_ink(amount: float) -> str:
    """Black or white, whichever is readable on the color of an amount."""
    return "#ffffff" if amount > 0.62 else "#000000"


def heat_map_svg(components: Components) -> str:
    """A standalone SVG with a transparent background. Point at a cell to read its name and numbers."""
    return draw_standalone(*_make_chart(components))


def draw_heat_map(components: Components) -> Picture:
    """The same for a page."""
    return draw_picture(*_make_chart(components))


def _make_chart(components: Components) -> "tuple[alt.VConcatChart, str]":
    """The chart and its label.

    Rows are kinds in model order, columns are layers; experts of one kind and layer are one cell, their mean.

    Components outside the layers are in a last column.
    """
    import altair as alt

    cells = group_components(components)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = {layer for _, layer in cells}
    width = next((width for most, width in CELL_WIDTHS.items() if len(layers) <= most), NARROWEST)
    rows = [
        {
            "row": clean_text(cell.kind),
            "layer": name_layer(cell.layer),
            "color": choose_color(amount) if math.isfinite(amount) else "transparent",
            "ink": choose_ink(amount),
            "number": f"{100 * amount:z.0f}" if math.isfinite(amount) and width >= NUMBER_WIDTH else "",
            "tip": clean_text(cell.describe()),
        }
        for cell in cells.values()
        for amount in [cell.mean("amount")]
    ]
    base = plot(rows).encode(
        x=make_layer_axis(layers, gap=0.06, title="layer", titleAnchor="start"),
        y=make_row_axis(kinds, gap=0.08),
    )
    fill = alt.Fill("color:N", scale=None)
    squares = base.mark_rect(stroke=INK, strokeWidth=0.5).encode(fill=fill, description="tip:N")
    numbers = base.mark_text(fontSize=11, aria=False).encode(text="number:N", fill=alt.Fill("ink:N", scale=None))
    map_ = alt.layer(squares, numbers).properties(width=alt.Step(width), height=alt.Step(ROW_HEIGHT))
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    key = make_key([(choose_color(share), format_percent(share)) for share in shares], "of the bits were removed")
    label = f"Share of the bits that was removed from {len(components)} components, by kind and layer"
    return alt.vconcat(*([map_] if rows else []), key, spacing=14), label
