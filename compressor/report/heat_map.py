"""The picture of a compressed model: kind of component by layer, coloured by how much was taken away, as one SVG."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from compressor.artifacts.run_record import ComponentRecord
from compressor.report.formatting import escape_text, format_number, format_percent

ROW_HEIGHT, GAP, TOP, LEGEND_HEIGHT, ASIDE = 26, 2, 42, 74, 12
CHARACTER_WIDTH = 7.2
NUMBER_WIDTH = 26
"""A cell at least this wide has its number printed."""
INK = "#757575"
"""A grey that is equally far from white and from black: readable on either background."""
TEXT_STYLE = f'fill="{INK}" style="fill:var(--text, {INK})"'
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"

Components = Mapping[str, ComponentRecord]
Group = tuple[str, int | None]


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


def group_components(components: Components) -> dict[Group, Cell]:
    """Kind and layer -> cell, in model order."""
    members: dict[Group, dict[str, ComponentRecord]] = defaultdict(dict)
    for name, component in components.items():
        members[component.kind, component.layer][name] = component
    return {(kind, layer): Cell(kind, layer, found) for (kind, layer), found in members.items()}


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


def choose_cell_width(columns: int) -> int:
    """So that a small model fills its place and a large one stays on a page."""
    for most, width in ((12, 44), (24, 34), (48, NUMBER_WIDTH)):
        if columns <= most:
            return width
    return 14


def heat_map_svg(components: Components) -> str:
    """A standalone SVG with a transparent background: rows are kinds in model order, columns are layers.

    Experts of one kind and layer are one cell, their mean over weights. Components outside the layers are in a last
    column. Point at a cell to read its name and numbers.
    """
    cells = group_components(components)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    outside = [None] if any(layer is None for _, layer in cells) else []
    columns = [*sorted({layer for _, layer in cells if layer is not None}), *outside]
    cell_width = choose_cell_width(len(columns))
    places = {layer: cell_width * index + (ASIDE if layer is None else 0) for index, layer in enumerate(columns)}
    left = 16 + CHARACTER_WIDTH * max([len(kind) for kind in kinds], default=0)
    width = left + max(cell_width * len(columns) + 2 * ASIDE, 330)
    bottom = TOP + ROW_HEIGHT * len(kinds)
    parts = [_draw_column_names(places, left, cell_width)]
    for row, kind in enumerate(kinds):
        y = TOP + ROW_HEIGHT * row
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 17}" text-anchor="end" {TEXT_STYLE}>{escape_text(kind)}</text>')
        for layer, place in places.items():
            if cell := cells.get((kind, layer)):
                parts.append(_draw_cell(cell, left + place, y, cell_width))
    parts.append(_draw_legend(left, bottom + 18))
    label = f"Amount taken away from {len(components)} components, by kind and layer"
    height = bottom + LEGEND_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{label}" font-family="{FONT}" font-size="12">'
        f"<title>{label}</title>{''.join(parts)}</svg>"
    )


def _draw_column_names(places: Mapping[int | None, int], left: float, cell_width: int) -> str:
    layers = [layer for layer in places if layer is not None]
    digits = max([len(str(layer)) for layer in layers], default=1)
    every = max(1, math.ceil((digits * CHARACTER_WIDTH + 6) / cell_width))
    shown: list[int | None] = [*layers[::every], *([None] if None in places else [])]
    parts = [f'<text x="{left:.1f}" y="14" {TEXT_STYLE}>layer</text>'] if layers else []
    for layer in shown:
        middle = left + places[layer] + (cell_width - GAP) / 2
        name = "other" if layer is None else str(layer)
        parts.append(f'<text x="{middle:.1f}" y="34" text-anchor="middle" {TEXT_STYLE}>{name}</text>')
    return "".join(parts)


def _draw_cell(cell: Cell, x: float, y: float, cell_width: int) -> str:
    amount = cell.mean("amount")
    known = math.isfinite(amount)
    fill = choose_color(amount) if known else "none"
    parts = [
        f"<g><title>{escape_text(cell.describe())}</title>",
        f'<rect x="{x:.1f}" y="{y}" width="{cell_width - GAP}" height="{ROW_HEIGHT - GAP}" rx="2" fill="{fill}"'
        f' stroke="{INK}" stroke-width="0.5"/>',
    ]
    if known and cell_width >= NUMBER_WIDTH:
        middle = x + (cell_width - GAP) / 2
        ink = choose_ink(amount)
        number = f"{100 * amount:.0f}"
        parts.append(
            f'<text x="{middle:.1f}" y="{y + 16}" text-anchor="middle" font-size="11" fill="{ink}">{number}</text>'
        )
    return "".join(parts) + "</g>"


def _draw_legend(left: float, y: float, steps: int = 50, step: int = 4) -> str:
    parts = [
        f'<rect x="{left + step * index:.1f}" y="{y}" width="{step}" height="10" shape-rendering="crispEdges"'
        f' fill="{choose_color((index + 0.5) / steps)}"/>'
        for index in range(steps)
    ]
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = left + steps * step * share
        text = format_percent(share)
        parts.append(f'<text x="{x:.1f}" y="{y + 24}" text-anchor="{anchor}" {TEXT_STYLE}>{text}</text>')
    text = "of the bits of a component were taken away"
    parts.append(f'<text x="{left:.1f}" y="{y + 44}" {TEXT_STYLE}>{text}</text>')
    return "".join(parts)
