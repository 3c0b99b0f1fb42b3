"""Charts of a value over an amount or a size: points with intervals, joined only where there are enough for a curve."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.report.formatting import clean_text, format_number, format_percent
from compressor.report.vega import ACCENT, COLORS, INK, PAGE, Picture, draw_picture

if TYPE_CHECKING:
    import altair as alt

FEWEST_JOINED = 3
"""Two points are two points: a line between them would claim what nobody measured."""


@dataclass(frozen=True)
class Point:
    """A value at a place, with its interval and the text of its tip; not `trusted` ones are joined by dashes."""

    x: float
    value: float
    low: float
    high: float
    tip: str = ""
    trusted: bool = True

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(number) for number in (self.x, self.value, self.low, self.high))

    def describe(self) -> str:
        words = f"{format_number(self.value)} ({format_number(self.low)} – {format_number(self.high)})"
        return self.tip or f"{format_percent(self.x)}: {words}"


@dataclass(frozen=True)
class Axes:
    """What is to the right and what is up; `top` is the largest value there can be; shares are shown as percent."""

    across: str
    up: str
    top: float | None = None
    is_share: bool = True
    from_zero: bool = True


def draw_lines(
    series: Mapping[str, Sequence[Point]], axes: Axes, marks: Sequence[Point] = (), size: tuple[int, int] = (440, 230)
) -> Picture | None:
    """One curve for each name, in its own color, and `marks` as rings with error bars; None without two points."""
    import altair as alt

    series = {clean_text(name): sort_points(points) for name, points in series.items()}
    # The first is drawn last, on top of the others.
    reverse = list(series)[::-1]
    marks = sort_points(marks)
    every = [*marks, *(point for points in series.values() for point in points)]
    if len(every) < 2:
        return None
    colors = [ACCENT, *(COLORS[index % len(COLORS)] for index in range(len(series) - 1))]
    highest = max(max(point.value, point.high) for point in every)
    top = axes.top if axes.top and axes.top >= highest else None
    up = alt.Scale(domain=[0, top], nice=False) if top else alt.Scale(zero=True)
    across = alt.Scale(zero=axes.from_zero, nice=True, padding=8)
    form = alt.Axis(title=clean_text(axes.across), grid=False, format="~%" if axes.is_share else "~g", tickCount=6)
    # The largest value that there can be has its level drawn.
    levels = alt.Axis(
        title=clean_text(axes.up), **({"values": [top * step / 4 for step in range(5)]} if top else {"tickCount": 5})
    )
    legend = alt.Legend(title=None, orient="bottom", symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3)
    place = {
        "x": alt.X("x:Q", scale=across, axis=form),
        "y": alt.Y("value:Q", scale=up, axis=levels),
        "color": alt.Color(
            "series:N",
            scale=alt.Scale(domain=list(series), range=colors),
            legend=legend if len(series) > 1 else None,
        ),
    }
    spans = {**place, "y": alt.Y("low:Q", scale=up), "y2": alt.Y2("high:Q")}
    curves = {name: points for name in reverse if len(points := series[name]) >= FEWEST_JOINED}
    apart = [row for name, points in series.items() if name not in curves for row in _list_rows(name, points)]
    joined = [row for name, points in curves.items() for row in _list_rows(name, points)]
    dots = [row for name in reverse for row in _list_rows(name, series[name])]
    rings = _list_rows("", marks)
    dash = alt.StrokeDash("dashes:N", scale=None)
    bare = {"x": place["x"], "y": place["y"]}
    layers: list[alt.Chart] = []
    if joined:
        layers.append(_plot(joined).mark_area(opacity=0.15, aria=False).encode(**spans))
        pieces = [row for name, points in curves.items() for row in _list_pieces(name, points)]
        line = _plot(pieces).mark_line(strokeWidth=2, aria=False)
        layers.append(line.encode(**place, detail="piece:N", strokeDash=dash))
    if apart:
        layers.append(_plot(apart).mark_rule(strokeWidth=1.5, aria=False).encode(**spans))
    layers.append(_plot(dots).mark_circle(size=45, opacity=1).encode(**place, description="tip:N"))
    if rings:
        errors = {"x": place["x"], "y": spans["y"], "y2": spans["y2"]}
        layers.append(_plot(rings).mark_rule(strokeWidth=1.5, stroke=INK, aria=False).encode(**errors))
        circles = _plot(rings).mark_circle(size=70, fill=PAGE, stroke=INK, strokeWidth=2, opacity=1)
        layers.append(circles.encode(**bare, description="tip:N"))
    chart = alt.layer(*layers).properties(width=size[0], height=size[1])
    return draw_picture(chart, f"{axes.up} over {axes.across}")


def sort_points(points: Sequence[Point]) -> list[Point]:
    """What can be drawn, from left to right."""
    return sorted((point for point in points if point.is_finite), key=lambda point: point.x)


def _plot(rows: list[dict[str, Any]]) -> "alt.Chart":
    import altair as alt

    return alt.Chart(alt.Data(values=rows))


def _list_rows(name: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    """As the chart reads them."""
    return [
        {
            "series": name,
            "x": point.x,
            "value": point.value,
            "low": point.low,
            "high": point.high,
            "tip": clean_text(f"{name}, {point.describe()}" if name else point.describe()),
        }
        for point in points
    ]


def _list_pieces(name: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    """The line through the points, cut where it changes between solid and dashed: dashed to and from what is not
    trusted.
    """
    rows = _list_rows(name, points)
    found: list[dict[str, Any]] = []
    piece, before = 0, None
    for index in range(len(rows) - 1):
        dashes = [] if points[index].trusted and points[index + 1].trusted else [3, 4]
        if dashes != before:
            piece, before = piece + 1, dashes
            found.append(rows[index] | {"piece": f"{name} {piece}", "dashes": dashes})
        found.append(rows[index + 1] | {"piece": f"{name} {piece}", "dashes": dashes})
    return found
