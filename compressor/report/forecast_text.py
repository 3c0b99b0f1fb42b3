"""What a forecast comes to, in words and rows that the page and the terminal share."""

import math
from collections import Counter
from collections.abc import Sequence

from compressor.artifacts.forecast_record import ForecastRecord, OptionForecast, PointForecast
from compressor.report.cost_map import Pair, pair_of
from compressor.report.formatting import (
    MISSING,
    Fact,
    format_bytes,
    format_percent,
    format_range,
    format_score,
    format_seconds,
    list_additivity,
)

RANKED = 5
"""Components that are named at each end."""
Ranked = list[tuple[str, OptionForecast]]


def list_options(record: ForecastRecord) -> list[OptionForecast]:
    """The options of all components."""
    return [option for matrix in record.components.values() for option in matrix.options]


def list_compressors(record: ForecastRecord) -> list[str]:
    return list(dict.fromkeys(option.compressor for option in list_options(record)))


def find_last(record: ForecastRecord, least: float = -math.inf) -> PointForecast | None:
    """The largest amount for which the law is trusted and the expected FDT is at least `least`."""
    fits = [p for p in record.curve if p.amount > 0 and p.trusted and p.expected_fdtm >= least]
    return max(fits, key=lambda point: point.amount, default=None)


def format_expected(point: PointForecast) -> str:
    """The expected FDT with its band."""
    return format_range(point.expected_fdtm, point.low, point.high)


def format_counted(record: ForecastRecord, point: PointForecast) -> str | None:
    """The FDT that was counted in the check of a point, with its interval; None in a forecast without checks."""
    if not record.checks:
        return None
    found = [check.scores["fdtm"] for check in record.checks if check.amount == point.amount and "fdtm" in check.scores]
    return format_score(found[0]) if found else ""


def format_parts(point: PointForecast) -> str:
    """`int8 55 %, int4 20 %`: the share of the weights that each compressor treats."""
    parts = sorted(point.parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * share:z.0f} %" for name, share in parts) or MISSING


def choose_pair(record: ForecastRecord) -> Pair | None:
    """The treatment by which components are compared: of those that most have, the one nearest to half."""
    pairs = Counter(map(pair_of, list_options(record)))
    return max(pairs, key=lambda pair: (pairs[pair], -abs(pair[1] - 0.5)), default=None)


def rank_components(record: ForecastRecord, pair: Pair) -> tuple[Ranked, Ranked]:
    """The most and the least sensitive components at a treatment, the most extreme first; no component is in both."""
    found = [
        (name, option)
        for name, matrix in record.components.items()
        for option in matrix.options
        if matrix.reached and pair_of(option) == pair and math.isfinite(option.cost)
    ]
    found.sort(key=lambda item: -item[1].cost)
    count = min(RANKED, len(found) // 2)
    return found[:count], found[::-1][:count]


def gets_smaller(record: ForecastRecord) -> bool:
    """Is there a plan that needs less room on disk than the original?"""
    points = [*record.curve, *(point for points in record.curves.values() for point in points)]
    return any(point.bytes < record.base["bytes"] * 0.999 for point in points)


def drop_dominated(record: ForecastRecord, points: Sequence[PointForecast]) -> list[PointForecast]:
    """Without the plans that another one beats in size and in expected FDT, in the same order.

    All of them where no plan is smaller than the original: then the amount is what they are compared by.
    """
    if not gets_smaller(record):
        return list(points)
    best = -math.inf
    kept = []
    for point in sorted(points, key=lambda point: (point.bytes, -point.expected_fdtm, point.amount)):
        if point.expected_fdtm > best:
            kept.append(point)
            best = point.expected_fdtm
    return [point for point in points if any(point is other for other in kept)]


def list_forecast_facts(record: ForecastRecord) -> list[Fact]:
    """What was looked at, and what it took."""
    options, reference = len(list_options(record)), record.reference
    facts = [
        Fact("size on disk", format_bytes(record.base["bytes"])),
        Fact("parameters", f"{record.base['parameters']:,}"),
        Fact("treatments looked at", f"{options:,} of {len(record.components):,} matrices"),
    ]
    if reference is not None:
        shape = f"{reference.prefixes:,} × {reference.prefix_tokens} + {reference.continuation_tokens} tokens"
        facts.append(Fact("prefixes", shape, "prefix + what the original says after it"))
    last = find_last(record)
    facts.append(Fact("forecast trusted", f"to {format_percent(last.amount)} of the bits" if last else "for no size"))
    facts += list_additivity(check.additivity for check in record.checks)
    return [*facts, Fact("time", format_seconds(record.seconds))]
