"""How a value is spread over the prefixes: bars of equal width, with the mean marked."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from compressor.report.formatting import clean_text, format_number, format_percent
from compressor.report.vega import ACCENT, INK, PAGE, Picture, draw_layers, plot

MOST_BARS = 16
FEWEST_VALUES = 8
"""Fewer are no distribution."""

Bar = tuple[float, float, int, str]
"""From, to, how many, and the range in words."""


def draw_histogram(values: Sequence[float], label: str, most: int | None = None) -> Picture | None:
    """`most` is given for counts of tokens: the largest count there can be. None of too few values."""
    import altair as alt

    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < FEWEST_VALUES or min(finite) == max(finite):
        return None
    bars = count_tokens(finite, most) if most else count_values(finite)
    rows = [
        {
            "from": low,
            "to": high,
            "count": count,
            "tip": clean_text(f"{words}: {count} of {len(finite)} prefixes ({format_percent(count / len(finite))})"),
        }
        for low, high, count, words in bars
        if count
    ]
    mean = sum(finite) / len(finite)
    across = alt.Scale(domain=[bars[0][0], bars[-1][1]], nice=False)
    bar = (
        plot(rows)
        .mark_rect(fill=ACCENT, stroke=PAGE, strokeWidth=1)
        .encode(
            x=alt.X("from:Q", scale=across, axis=alt.Axis(title=clean_text(label), grid=False, tickCount=8)),
            x2="to:Q",
            y=alt.Y("count:Q", axis=alt.Axis(title="prefixes", tickCount=5, tickMinStep=1), scale=alt.Scale(zero=True)),
            y2=alt.Y2(datum=0),
            description="tip:N",
        )
    )
    line = plot([{"mean": mean, "words": f"mean {format_number(mean, 1 if most else None)}"}])
    place = alt.X("mean:Q", scale=across)
    rule = line.mark_rule(stroke=INK, strokeWidth=1.5, strokeDash=[4, 3], aria=False).encode(x=place)
    is_right = mean > (bars[0][0] + bars[-1][1]) / 2
    words = line.mark_text(align="right" if is_right else "left", dx=-5 if is_right else 5, dy=-6, fill=INK, aria=False)
    layers = [bar, rule, words.encode(x=place, y=alt.value(0), text="words:N")]
    return draw_layers(layers, f"{label}: how many prefixes have it")


def count_tokens(values: Sequence[float], most: int) -> list[Bar]:
    """Bars of whole tokens from 0; the last bar holds only the prefixes that reached `most`."""
    width = -(-most // MOST_BARS)
    edges = [*range(0, most, width), most, most + width]
    names = [f"{low} tokens" if high - low == 1 else f"{low} to {high - 1} tokens" for low, high in pairwise(edges)]
    return _count(values, edges, [*names[:-1], f"all {most} tokens"])


def count_values(values: Sequence[float]) -> list[Bar]:
    """Bars of equal width from the smallest value to the largest."""
    low, high = min(values), max(values)
    edges = [low + (high - low) / MOST_BARS * index for index in range(MOST_BARS + 1)]
    return _count(values, edges, [f"{format_number(start)} to {format_number(end)}" for start, end in pairwise(edges)])


def _count(values: Sequence[float], edges: Sequence[float], names: Sequence[str]) -> list[Bar]:
    """The bars between edges; a value on an edge is in the bar to the right, one on the last edge in the last bar."""
    counts = Counter(min(bisect_right(edges, value), len(names)) - 1 for value in values)
    return [(*ends, counts[index], names[index]) for index, ends in enumerate(pairwise(edges))]
