"""Charts by Vega-Lite: a chart of Altair becomes an SVG, and the text of each mark a tip for mouse, touch and keys.

The picture is made when the page is written. A page that carried Vega itself would need a script of a megabyte and
`unsafe-eval`, and its tips answer neither a key nor a finger.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from compressor.report.formatting import clean_text
from compressor.report.svg_process import NotDrawn, SvgProcess

if TYPE_CHECKING:
    import altair as alt

SVG = "http://www.w3.org/2000/svg"
INK = "var(--text, #757575)"
"""The page's colour of text; outside a page a grey that is equally far from white and from black."""
PAGE = "var(--page, #ffffff)"
FAINT = "var(--line, #bdbdbd)"
ACCENT = "var(--accent, #0b78a8)"
COLORS = ("#d55e00", "#009e73", "#b5609a", "#a67c00", "#7a6ff0", "#8c564b")
"""Of the series beside the first: readable on white and on black, told apart by most eyes (after Okabe and Ito)."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
CHARACTER_WIDTH = 7.2
"""Of a letter in the font that a reader may have; the converter measures with its own."""
SMALLEST_TIP = 8.0
"""A mark smaller than this is this wide for a finger or a mouse."""
KEPT = {"d", "fill", "stroke", "stroke-width", "stroke-dasharray", "transform", "x2", "y2", "text-anchor"}
KEPT |= {"font-size", "font-weight"}
OPACITIES = ("opacity", "fill-opacity", "stroke-opacity")
"""Attributes of Vega's SVG that change the picture; the others say once more what a mark is."""
VARIABLE = re.compile(r"var\(--[a-z]+, ([^)]*)\)")
NUMBER = r"(-?[\d.]+(?:e-?\d+)?)"
RECTANGLE = re.compile(rf"M{NUMBER},{NUMBER}h{NUMBER}v{NUMBER}")
CIRCLE = re.compile(rf"M{NUMBER},")
"""A circle begins at its right end, and its middle is the origin."""
SHIFT = re.compile(rf"translate\({NUMBER},{NUMBER}\)")

ElementTree.register_namespace("", SVG)
DRAWN = SvgProcess()
log = logging.getLogger(__name__)

Mark = tuple[ElementTree.Element, float, float, float, float]
"""An element, and its left, top, width and height."""


@dataclass(frozen=True)
class Tip:
    """The text of a mark, and where the mark is, in percent of the picture."""

    text: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Picture:
    """An SVG without any text from outside that is not escaped, and the tips to lay over it."""

    label: str
    svg: str
    width: int
    tips: list[Tip] = field(default_factory=list)


def plot(rows: Sequence[dict[str, Any]]) -> "alt.Chart":
    """A chart without marks of these rows."""
    import altair as alt

    return alt.Chart(alt.Data(values=rows))


def draw_layers(layers: "Sequence[alt.Chart]", label: str, height: int = 230) -> Picture:
    """A picture of layers that share their axes, as wide as a column of a page."""
    import altair as alt

    return draw_picture(alt.layer(*layers).properties(width=440, height=height), label)


def draw_picture(chart: "alt.TopLevelMixin", label: str) -> Picture:
    """For a page: colours are the page's own, and the tips stand beside the picture."""
    root = _convert(chart, label)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    tips = [
        Tip(text, 100 * x / width, 100 * y / height, 100 * w / width, 100 * h / height)
        for mark, x, y, w, h in _find_marks(root)
        if (text := mark.attrib["aria-label"])
    ]
    _clean(root)
    return Picture(clean_text(label), ElementTree.tostring(root, encoding="unicode"), round(width), tips)


def draw_standalone(chart: "alt.TopLevelMixin", label: str) -> str:
    """An SVG that needs no page: point at a mark to read its tip."""
    root = _convert(chart, label)
    for mark, *_ in list(_find_marks(root)):
        ElementTree.SubElement(mark, f"{{{SVG}}}title").text = mark.attrib["aria-label"]
    _clean(root, KEPT | {"aria-label"})
    for element in root.iter():
        for key, value in element.attrib.items():
            element.attrib[key] = VARIABLE.sub(r"\1", value) if key in ("fill", "stroke") else value
    return ElementTree.tostring(root, encoding="unicode")


def make_key(entries: Sequence[tuple[str, str]], title: str) -> "alt.LayerChart":
    """A legend as a row of squares, each a color and its label. (Vega's own needs a gradient, which needs an id.)"""
    import altair as alt

    step = 34 + CHARACTER_WIDTH * max((len(label) for _, label in entries), default=0)
    rows = [{"x": index, "color": color, "label": label} for index, (color, label) in enumerate(entries)]
    place = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.2, max(1, len(rows)) - 0.2], nice=False))
    base = plot(rows).encode(x=place)
    squares = base.mark_square(size=160, opacity=1, aria=False, stroke=INK, strokeWidth=0.5)
    labels = base.mark_text(align="left", dx=11, aria=False, fill=INK)
    heading = alt.TitleParams(text=title, anchor="start", fontWeight="normal", fontSize=12, offset=6)
    layers = [squares.encode(fill=alt.Fill("color:N", scale=None)), labels.encode(text="label:N")]
    return alt.LayerChart(layer=layers, title=heading, width=step * max(1, len(rows)), height=18)


def sort_layers(layers: Iterable[int | None]) -> list[int | None]:
    """From the first to the last, then what is in none."""
    return sorted(set(layers), key=lambda layer: (layer is None, layer or 0))


def name_layer(layer: int | None) -> str:
    """`other` for what is in no layer."""
    return "other" if layer is None else str(layer)


def make_layer_axis(layers: Iterable[int | None], gap: float, **axis: Any) -> "alt.X":  # noqa: ANN401 - of Altair
    """A column for each layer, and a last one for what is in none; `gap` is the share of a column beside its cell."""
    import altair as alt

    texts = [name_layer(layer) for layer in sort_layers(layers)]
    scale = alt.Scale(domain=texts, paddingInner=gap, paddingOuter=0)
    return alt.X("layer:N", scale=scale, axis=alt.Axis(orient="top", labelAngle=0, labelOverlap="greedy", **axis))


def make_row_axis(names: Sequence[str], gap: float, **axis: Any) -> "alt.Y":  # noqa: ANN401 - of Altair
    """A row for each name, which stands to its left; `gap` is the share of a row above its cell."""
    import altair as alt

    texts = [clean_text(name) for name in names]
    room = CHARACTER_WIDTH * max(map(len, texts), default=0)
    scale = alt.Scale(domain=texts, paddingInner=gap, paddingOuter=0)
    return alt.Y("row:N", scale=scale, axis=alt.Axis(title=None, minExtent=room, **axis))


def _convert(chart: "alt.TopLevelMixin", label: str) -> ElementTree.Element:
    """The SVG of a chart; where it cannot be drawn, one that says why, because a page without a picture has its use."""
    axis = {"labelColor": INK, "titleColor": INK, "gridColor": FAINT, "domain": False, "ticks": False}
    axis |= {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 0, "titleLimit": 0}
    legend = {"labelColor": INK, "labelFontSize": 12, "labelLimit": 0}
    look = {"font": FONT, "background": "transparent", "padding": 6, "axis": axis, "legend": legend}
    look |= {"view": {"stroke": None}, "title": {"color": INK, "limit": 0}, "text": {"fontSize": 12}}
    specification = chart.to_dict(validate=False) | {"config": look, "background": "transparent"}
    try:
        root = ElementTree.fromstring(DRAWN.convert(specification))
    except NotDrawn as error:
        log.warning("a picture is missing: %s", error)
        root = ElementTree.fromstring(f'<svg xmlns="{SVG}" width="440" height="40" viewBox="0 0 440 40"/>')
        said = ElementTree.SubElement(root, f"{{{SVG}}}text", {"y": "24", "fill": INK, "font-size": "12px"})
        said.text = clean_text(f"This picture is missing: {error}.")
    kept = {key: root.attrib[key] for key in ("width", "height", "viewBox")}
    root.attrib = kept | {"role": "img", "aria-label": clean_text(label), "font-family": FONT}
    return root


def _find_marks(element: ElementTree.Element, x: float = 0.0, y: float = 0.0) -> Iterator[Mark]:
    """The marks that have a text, and the rectangle around each."""
    for dx, dy in SHIFT.findall(element.attrib.get("transform", "")):
        x, y = x + float(dx), y + float(dy)
    if element.tag == f"{{{SVG}}}path" and "aria-label" in element.attrib:
        path = element.attrib["d"]
        if found := RECTANGLE.match(path):
            left, top, width, height = map(float, found.groups())
        else:
            circle = CIRCLE.match(path)
            assert circle is not None, path
            radius = float(circle[1])
            left, top, width, height = -radius, -radius, 2 * radius, 2 * radius
        wider, higher = max(0.0, SMALLEST_TIP - width), max(0.0, SMALLEST_TIP - height)
        yield element, x + left - wider / 2, y + top - higher / 2, width + wider, height + higher
        return
    for child in element:
        yield from _find_marks(child, x, y)


def _clean(element: ElementTree.Element, kept: set[str] = KEPT) -> None:
    """Leave out what neither draws anything nor names it: half of the bytes."""
    for child in list(element):
        is_empty = child.attrib.get("display") == "none" or child.attrib.get("class") == "background"
        if is_empty and "fill" not in child.attrib:
            element.remove(child)
            continue
        named = child.tag == f"{{{SVG}}}path"
        child.attrib = {
            key: value
            for key, value in child.attrib.items()
            if (key in kept and (named or key != "aria-label")) or (key in OPACITIES and value != "1")
        }
        _clean(child, kept)
