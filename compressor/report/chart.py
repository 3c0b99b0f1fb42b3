"""A small line chart as inline SVG: one metric over the amount, round by round, with its interval as a band."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.report.heatmap import FONT, INK, TEXT_STYLE
from compressor.report.wording import escape_text, format_number, format_percent

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 260, 56, 20, 20, 44
LINE = "#0b78a8"
LINE_STYLE = f'stroke="{LINE}" style="stroke:var(--accent, {LINE})"'
FILL_STYLE = f'fill="{LINE}" style="fill:var(--accent, {LINE})"'


@dataclass(frozen=True)
class Point:
    """A value at an amount, with its interval."""

    amount: float
    value: float
    low: float
    high: float

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(number) for number in (self.amount, self.value, self.low, self.high))


def line_chart_svg(points: Sequence[Point], label: str, top: float | None = None) -> str:
    """`points` from left to right; `top` is the largest value there can be. Empty where nothing can be drawn."""
    points = sorted((point for point in points if point.is_finite), key=lambda point: point.amount)
    if len(points) < 2:
        return ""
    highest = max(max(point.value, point.high) for point in points)
    ceiling = top if top and top >= highest else _round_up(highest)
    furthest = _round_up(points[-1].amount)

    def place(amount: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * amount / furthest
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * max(0.0, value) / ceiling

    upper = [place(point.amount, point.high) for point in points]
    lower = [place(point.amount, point.low) for point in reversed(points)]
    middle = [place(point.amount, point.value) for point in points]
    parts = [
        *(_draw_level(ceiling * share, *place(0.0, ceiling * share)) for share in (0.0, 0.5, 1.0)),
        *(_draw_amount(furthest * share, place(furthest * share, 0.0)[0]) for share in (0.0, 0.5, 1.0)),
        f'<polygon points="{_join(upper + lower)}" {FILL_STYLE} fill-opacity="0.18"/>',
        f'<polyline points="{_join(middle)}" fill="none" {LINE_STYLE} stroke-width="2"/>',
        *(_draw_point(point, *spot) for point, spot in zip(points, middle, strict=True)),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle" {TEXT_STYLE}>amount</text>',
    ]
    name = escape_text(f"{label} over amount")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' role="img" aria-label="{name}" font-family="{FONT}" font-size="12"><title>{name}</title>'
        f'<text x="{LEFT}" y="12" {TEXT_STYLE}>{escape_text(label)}</text>{"".join(parts)}</svg>'
    )


def _round_up(value: float) -> float:
    """The next number that is easy to halve."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _draw_level(value: float, x: float, y: float) -> str:
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{INK}" stroke-opacity="0.35"/>'
        f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" {TEXT_STYLE}>{format_number(value)}</text>'
    )


def _draw_amount(amount: float, x: float) -> str:
    y = HEIGHT - BOTTOM + 17
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle" {TEXT_STYLE}>{format_percent(amount)}</text>'


def _draw_point(point: Point, x: float, y: float) -> str:
    words = f"{format_number(point.value)} ({format_number(point.low)} – {format_number(point.high)})"
    title = f"amount {format_percent(point.amount)}: {words}"
    return f'<g><title>{title}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="4" {FILL_STYLE}/></g>'


def _join(spots: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
