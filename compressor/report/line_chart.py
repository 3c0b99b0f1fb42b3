"""Charts of a value over an amount or a size: points with intervals, joined only where there are enough for a curve."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from compressor.report.formatting import clean_text
from compressor.report.vega import ACCENT, COLORS, INK, PAGE, Picture, draw_layers, plot

FEWEST_JOINED = 3
"""Two points are two points: a line between them would claim what nobody measured."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A value at a place, with its interval and the text of its tip; not `trusted` ones are joined by dashes."""

    x: float
    value: float
    low: float
    high: float
    tip: str
    trusted: bool = True


@dataclass(frozen=True)
class Axes:
    """What is to the right and what is up; `top` is the largest value there can be.

    To the right are shares, from 0 and shown as percent, or other numbers.
    """

    across: str
    up: str
    top: float | None = None
    is_share: bool = True


def draw_lines(
    series: Mapping[str, Sequence[Point]], axes: Axes, marks: Sequence[Point] = (), height: int = 230
) -> Picture | None:
    """One curve for each name, in its own color, and `marks` as rings with error bars; None without two points."""
    import altair as alt

    curves = {clean_text(name): _make_rows(points, name) for name, points in series.items()}
    rings = _make_rows(marks)
    # The first is drawn last, on top of the others.
    reverse = list(curves.values())[::-1]
    dots = [row for rows in reverse for row in rows]
    if len(dots) + len(rings) < 2:
        return None
    highest = max(max(row["value"], row["high"]) for row in [*dots, *rings])
    top = axes.top if axes.top and axes.top >= highest else None
    # The largest value that there can be has its level drawn.
    levels = {"values": [top * step / 4 for step in range(5)]} if top else {"tickCount": 5}
    up = alt.Scale(domain=[0, top], nice=False) if top else alt.Scale(zero=True)
    form = alt.Axis(title=clean_text(axes.across), grid=False, format="~%" if axes.is_share else ".6~g", tickCount=6)
    x = alt.X("x:Q", scale=alt.Scale(zero=axes.is_share, nice=True, padding=8), axis=form)
    value = {"x": x, "y": alt.Y("value:Q", scale=up, axis=alt.Axis(title=clean_text(axes.up), **levels))}
    span = {"x": x, "y": alt.Y("low:Q", scale=up), "y2": alt.Y2("high:Q")}
    colors = [ACCENT, *(COLORS[index % len(COLORS)] for index in range(len(curves) - 1))]
    legend = alt.Legend(title=None, orient="bottom", symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3)
    color = alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(curves), range=colors),
        legend=legend if len(curves) > 1 else None,
    )
    joined = [rows for rows in reverse if len(rows) >= FEWEST_JOINED]
    layers: list[alt.Chart] = []
    if joined:
        area = plot([row for rows in joined for row in rows]).mark_area(opacity=0.15, aria=False)
        line = plot([row for rows in joined for row in _cut_line(rows)]).mark_line(strokeWidth=2, aria=False)
        dash = alt.StrokeDash("dashes:N", scale=None)
        layers += [
            area.encode(**span, color=color),
            line.encode(**value, color=color, detail="piece:N", strokeDash=dash),
        ]
    if apart := [row for rows in curves.values() if rows not in joined for row in rows]:
        layers.append(plot(apart).mark_rule(strokeWidth=1.5, aria=False).encode(**span, color=color))
    layers.append(plot(dots).mark_circle(size=45, opacity=1).encode(**value, color=color, description="tip:N"))
    if rings:
        bars = plot(rings).mark_rule(strokeWidth=1.5, stroke=INK, aria=False)
        circles = plot(rings).mark_circle(size=70, fill=PAGE, stroke=INK, strokeWidth=2, opacity=1)
        layers += [bars.encode(**span), circles.encode(**value, description="tip:N")]
    return draw_layers(layers, f"{axes.up} over {axes.across}", height)


def _make_rows(points: Sequence[Point], name: str = "") -> list[Row]:
    """The points that can be drawn, from left to right, as the chart reads them."""
    rows = [
        vars(point) | {"series": clean_text(name), "tip": clean_text(f"{name}, {point.tip}" if name else point.tip)}
        for point in points
        if all(map(math.isfinite, (point.x, point.value, point.low, point.high)))
    ]
    return sorted(rows, key=lambda row: row["x"])


def _cut_line(rows: Sequence[Row]) -> Iterator[Row]:
    """The line through the points in pieces, solid or dashed: dashed to and from what is not trusted."""
    pieces = groupby(pairwise(rows), key=lambda ends: ends[0]["trusted"] and ends[1]["trusted"])
    for number, (trusted, found) in enumerate(pieces, start=1):
        segments = list(found)
        for row in [segments[0][0], *(end for _, end in segments)]:
            yield row | {"piece": f"{row['series']} {number}", "dashes": [] if trusted else [3, 4]}
