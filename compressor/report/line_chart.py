"""Small line charts as inline SVG: a value over the amount, with its interval as a band; one curve or several."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compressor.report.formatting import escape_text, format_number, format_percent
from compressor.report.heat_map import FONT, INK, TEXT_STYLE

LEFT, RIGHT, TOP, BOTTOM = 56, 20, 20, 44
LINE = "#0b78a8"
ACCENT = f"var(--accent, {LINE})"
COLORS = ("#d55e00", "#009e73", "#b5609a", "#a67c00", "#7a6ff0", "#8c564b")
"""Of the curves beside the first: readable on white and on black, told apart by most eyes (after Okabe and Ito)."""


@dataclass(frozen=True)
class Point:
    """A value at an amount, with its interval; from one that is not `trusted` on, the line is dashed."""

    amount: float
    value: float
    low: float
    high: float
    trusted: bool = True

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(number) for number in (self.amount, self.value, self.low, self.high))

    def describe(self) -> str:
        words = f"{format_number(self.value)} ({format_number(self.low)} – {format_number(self.high)})"
        return f"amount {format_percent(self.amount)}: {words}"


@dataclass(frozen=True)
class Curve:
    """A line through points from left to right; without a color it is the accent of the page."""

    points: Sequence[Point]
    name: str = ""
    color: str = ""
    width: float = 2.0
    radius: float = 4.0
    opacity: float = 0.18

    def style(self, attribute: str) -> str:
        if self.color:
            return f'{attribute}="{self.color}"'
        return f'{attribute}="{LINE}" style="{attribute}:{ACCENT}"'


@dataclass(frozen=True)
class Frame:
    """The plane of a chart: amounts to the right up to `furthest`, values upwards up to `ceiling`."""

    width: int
    height: int
    furthest: float
    ceiling: float

    def place(self, amount: float, value: float) -> tuple[float, float]:
        x = LEFT + (self.width - LEFT - RIGHT) * amount / self.furthest
        share = min(1.0, max(0.0, value / self.ceiling))
        return x, self.height - BOTTOM - (self.height - TOP - BOTTOM) * share


def line_chart_svg(points: Sequence[Point], label: str, top: float | None = None, axis: str = "amount") -> str:
    """One curve; `top` is the largest value there can be. Empty where nothing can be drawn."""
    return curves_svg([Curve(points)], label, top, axis=axis)


def curves_svg(
    curves: Sequence[Curve],
    label: str,
    top: float | None = None,
    marks: Sequence[Point] = (),
    mark_name: str = "",
    size: tuple[int, int] = (560, 260),
    parts: int = 2,
    axis: str = "amount",
) -> str:
    """Curves and, as rings with error bars, `marks`; axes are cut into `parts`. Empty where nothing can be drawn.

    `axis` says what goes to the right.
    """
    curves = [Curve(sort_points(c.points), c.name, c.color, c.width, c.radius, c.opacity) for c in curves]
    marks = sort_points(marks)
    every = [*marks, *(point for curve in curves for point in curve.points)]
    if not any(len(curve.points) > 1 for curve in curves):
        return ""
    highest = max(max(point.value, point.high) for point in every)
    ceiling = top if top and top >= highest else round_up(highest)
    frame = Frame(*size, round_up(max(point.amount for point in every)), ceiling)
    shares = [index / parts for index in range(parts + 1)]
    drawn = [
        *(_draw_level(frame, ceiling * share) for share in shares),
        *(_draw_amount(frame, frame.furthest * share) for share in shares),
        *(part for curve in curves for part in _draw_curve(frame, curve)),
        *(_draw_mark(frame, mark) for mark in marks),
        *_draw_legend(frame, curves, mark_name if marks else ""),
        f'<text x="{(LEFT + frame.width - RIGHT) / 2}" y="{frame.height - 6}" text-anchor="middle" {TEXT_STYLE}>'
        f"{escape_text(axis)}</text>",
    ]
    name = escape_text(f"{label} over {axis}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{frame.width}" height="{frame.height}" viewBox="0 0 '
        f'{frame.width} {frame.height}" role="img" aria-label="{name}" font-family="{FONT}" font-size="12">'
        f'<title>{name}</title><text x="{LEFT}" y="12" {TEXT_STYLE}>{escape_text(label)}</text>{"".join(drawn)}</svg>'
    )


def sort_points(points: Sequence[Point]) -> list[Point]:
    """What can be drawn, from left to right."""
    return sorted((point for point in points if point.is_finite), key=lambda point: point.amount)


def round_up(value: float) -> float:
    """The next number that is easy to halve."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _draw_level(frame: Frame, value: float) -> str:
    x, y = frame.place(0.0, value)
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{frame.width - RIGHT}" y2="{y:.1f}" stroke="{INK}"'
        f' stroke-opacity="0.35"/><text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" {TEXT_STYLE}>'
        f"{format_number(value)}</text>"
    )


def _draw_amount(frame: Frame, amount: float) -> str:
    x, y = frame.place(amount, 0.0)[0], frame.height - BOTTOM + 17
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle" {TEXT_STYLE}>{format_percent(amount)}</text>'


def _draw_curve(frame: Frame, curve: Curve) -> Iterator[str]:
    points = curve.points
    upper = [frame.place(point.amount, point.high) for point in points]
    lower = [frame.place(point.amount, point.low) for point in reversed(points)]
    middle = [frame.place(point.amount, point.value) for point in points]
    held = next((index for index, point in enumerate(points) if not point.trusted), len(points))
    if len(points) > 1:
        yield f'<polygon points="{_join(upper + lower)}" {curve.style("fill")} fill-opacity="{curve.opacity}"/>'
    line = f'fill="none" {curve.style("stroke")} stroke-width="{curve.width}"'
    if held > 1:
        yield f'<polyline points="{_join(middle[:held])}" {line}/>'
    if held < len(points):
        yield f'<polyline points="{_join(middle[max(0, held - 1) :])}" {line} stroke-dasharray="3 4"/>'
    for index, (point, (x, y)) in enumerate(zip(points, middle, strict=True)):
        title = escape_text(f"{curve.name}, {point.describe()}" if curve.name else point.describe())
        fill = curve.style("fill") if index < held else f'fill="none" {curve.style("stroke")}'
        yield f'<g><title>{title}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="{curve.radius:g}" {fill}/></g>'


def _draw_mark(frame: Frame, mark: Point) -> str:
    x, y = frame.place(mark.amount, mark.value)
    (_, low), (_, high) = frame.place(mark.amount, mark.low), frame.place(mark.amount, mark.high)
    bars = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
    ink = 'style="stroke:var(--text, #757575)"'
    return (
        f'<g><title>counted, {escape_text(mark.describe())}</title><path d="{bars}" stroke="{INK}" {ink}'
        f' stroke-width="1.5"/><circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#ffffff" stroke="{INK}" {ink}'
        ' stroke-width="2"/></g>'
    )


def _draw_legend(frame: Frame, curves: Sequence[Curve], mark_name: str) -> Iterator[str]:
    """Names of curves and marks at the top right, where falling curves leave room."""
    named = [curve for curve in curves if curve.name]
    entries = [(curve.style("stroke"), curve.width, "", curve.name) for curve in named]
    if any(not point.trusted for curve in named for point in curve.points):
        entries.append((f'stroke="{INK}"', 2.0, ' stroke-dasharray="3 4"', "beyond the law"))
    names = [*(name for *_, name in entries), *([mark_name] if mark_name else [])]
    x = frame.width - RIGHT - 34 - 7 * max((len(name) for name in names), default=0)
    for row, (stroke, width, dashes, name) in enumerate(entries):
        y = TOP + 14 + 19 * row
        yield (
            f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" {stroke} stroke-width="{width}"{dashes}/>'
            f'<text x="{x + 32}" y="{y + 4}" {TEXT_STYLE}>{escape_text(name)}</text>'
        )
    if mark_name:
        y = TOP + 14 + 19 * len(entries)
        yield (
            f'<circle cx="{x + 12}" cy="{y}" r="5" fill="#ffffff" stroke="{INK}" stroke-width="2"/>'
            f'<text x="{x + 32}" y="{y + 4}" {TEXT_STYLE}>{escape_text(mark_name)}</text>'
        )


def _join(spots: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
