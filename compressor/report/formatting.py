"""Numbers as a person reads them: rounded to what they can mean, with units; what is missing is a dash.

The `z` in a format writes a value that rounds to zero as 0, never as -0.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_record import NOT_VERIFIED, FinalRecord, Record, RunCost, VerificationRecord
from compressor.contracts import Score

MISSING = "–"
EMBEDDED = "the embedded tiny model"
BYTE_UNITS = ("bytes", "kB", "MB", "GB", "TB")
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""What no XML may hold, escaped or not."""


def format_number(value: float | None, decimals: int | None = None) -> str:
    """With `decimals` places, else four significant digits or so."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.1e}"
    if decimals is not None:
        return f"{value:z,.{decimals}f}"
    places = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:z,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def find_decimals(low: float, high: float) -> int | None:
    """Places that an interval justifies: its half-width to two digits up to 35, else to one. None without a width.

    Source: Particle Data Group, Review of Particle Physics, introduction, on rounding.
    """
    half = (high - low) / 2
    if not (math.isfinite(half) and half > 0):
        return None
    exponent = math.floor(math.log10(half))
    digits = 2 if half < 3.55 * 10.0**exponent else 1
    return min(6, max(0, digits - 1 - exponent))


def format_interval(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    decimals = find_decimals(low, high)
    return f"{format_number(low, decimals)} – {format_number(high, decimals)}"


def format_estimate(value: float, low: float, high: float) -> str:
    """A value to the places that its interval justifies."""
    return format_number(value, find_decimals(low, high))


def format_range(value: float, low: float, high: float) -> str:
    """A value with its interval: `16.4 (14.9 – 17.8)`."""
    return f"{format_estimate(value, low, high)} ({format_interval(low, high)})"


def format_score(score: Score | None) -> str:
    """The mean with its interval."""
    return format_range(score.mean, score.low, score.high) if score else MISSING


def name_metric(record: Record, name: str, counts: bool = False) -> str:
    """Its label and its unit: `FDT, tokens`, with `counts` `FDT, of 64 tokens`."""
    metric = record.metric(name)
    if counts and metric.unit == "tokens" and record.reference:
        return f"{metric.label}, of {record.reference.continuation_tokens} tokens"
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def format_percent(share: float | None, fixed: bool = False) -> str:
    """To a tenth of a percent; `fixed` keeps a zero there, for a column of them."""
    if share is None or not math.isfinite(share):
        return MISSING
    text = f"{100 * share:z.1f}"
    # 99.97 % must not read as everything, nor 0.02 % as nothing.
    if float(text) in (0.0, 100.0) and share not in (0.0, 1.0):
        text = f"{100 * share:z.3f}"
    return f"{text if fixed else text.rstrip('0').rstrip('.')} %"


def format_bytes(count: float | None) -> str:
    """In decimal units, as disks are sold and `ls -h --si` shows."""
    if count is None or not math.isfinite(count):
        return MISSING
    unit, divisor = choose_unit(count)
    size = count / divisor
    return f"{size:z.0f} {unit}" if divisor == 1 or size >= 100 else f"{size:z.3g} {unit}"


def choose_unit(count: float) -> tuple[str, float]:
    """The unit in which `format_bytes` would write it, and how many bytes that is."""
    power = 0
    while abs(count) >= 1000 ** (power + 1) and power + 1 < len(BYTE_UNITS):
        power += 1
    return BYTE_UNITS[power], 1000.0**power


def format_seconds(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:z.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_sizes(before: float | None, after: float | None) -> str:
    """`2.6 GB → 1.3 GB (−50 %)`."""
    text = f"{format_bytes(before)} → {format_bytes(after)}"
    if not before or after is None:
        return text
    change = after / before - 1
    sign = "−" if change < 0 else "+"
    return f"{text} (unchanged)" if abs(change) < 5e-4 else f"{text} ({sign}{format_percent(abs(change))})"


@dataclass(frozen=True)
class Fact:
    """A name, the words for it, and what it means where that is not plain."""

    name: str
    words: str
    meaning: str = ""


def format_bits(stored: float, packed: float) -> str:
    """Bits per weight in the exported files, and what packed integers would need where that is another number."""
    text = format_number(round(stored, 3))
    return text if abs(stored - packed) < 5e-4 else f"{text} in the files, {format_number(round(packed, 3))} if packed"


def format_noise_floor(record: Record) -> str:
    """Does the base agree with itself for every token? Without that no score means anything."""
    text = format_number(record.noise_floor)
    if record.noise_floor is None or record.reference is None:
        return text
    tokens = record.reference.continuation_tokens
    verdict = ", passed" if record.noise_floor >= tokens else ": too low, the scores cannot be trusted"
    return f"{text} of {tokens} tokens{verdict}"


def list_sparse_sizes(final: FinalRecord) -> list[Fact]:
    """What the files would take if zeros took less; empty for a model that is not pruned."""
    if final.bitmask_bytes is None or final.zstd_bytes is None:
        return []
    sizes = f"{format_bytes(final.bitmask_bytes)} with bitmasks, {format_bytes(final.zstd_bytes)} by zstd"
    return [Fact("if zeros took less", sizes, "no served format stores them so; the files are dense")]


def list_facts(record: Record) -> list[Fact]:
    """What a compression came to, apart from its scores; empty without a result."""
    final = record.final
    if final is None:
        return []
    facts = [
        Fact("size on disk", format_sizes(record.base.get("bytes"), final.bytes)),
        *list_sparse_sizes(final),
        Fact("bits removed (amount)", format_percent(final.amount), "mean over weights, scales not counted"),
        Fact("zero weights", format_percent(final.sparsity)),
        Fact("bits per weight", format_bits(final.bits_per_weight, final.packed_bits_per_weight), "scales counted"),
    ]
    if record.export and (found := record.export.verification):
        facts.append(Fact("saved model", describe_check(found)))
    if record.export and record.export.gguf and (found := record.export.gguf.verification):
        facts.append(Fact("model.gguf", describe_check(found)))
    return [
        *facts,
        *list_additivity(step.additivity for step in record.rounds),
        Fact("original against itself", format_noise_floor(record), "the noise floor of the measurement"),
        Fact("time", format_seconds(record.seconds)),
    ]


def describe_check(found: VerificationRecord) -> str:
    """What became of the check of a saved model."""
    if found.state == NOT_VERIFIED:
        return f"{found.state}: {found.reason}"
    gap = "same logits" if found.gap == 0 else f"logits within {found.gap:.1g}"
    return f"loaded again: {gap} on {found.prefixes:,} prefixes"


def list_additivity(ratios: Iterable[float | None]) -> list[Fact]:
    """`0.87, 0.95`: of each round or check that has a ratio; empty where none has."""
    words = ", ".join(format_number(ratio, 2) for ratio in ratios if ratio is not None)
    meaning = "sum of single effects ÷ effect of the whole plan; near 1, effects add up"
    return [Fact("additivity", words, meaning)] if words else []


def describe_cost(cost: RunCost, is_bound: bool = False) -> str:
    """`480 trials, 3 min 05 s, 1.2 GB of memory, 12 MB on disk`, without what is not known or nothing.

    With `is_bound` the time is the most that it can take.
    """
    passes = round(cost.passes)
    parts = [f"{cost.trials:,} trial{'s' if cost.trials > 1 else ''}"] if cost.trials else []
    if passes not in (0, cost.trials):
        parts.append(f"{passes:,} forward passes")
    if cost.seconds is not None:
        parts.append(f"{'at most ' if is_bound else ''}{format_seconds(cost.seconds)}")
    if cost.memory_bytes is not None:
        parts.append(f"{format_bytes(cost.memory_bytes)} of memory")
    return ", ".join([*parts, f"{format_bytes(cost.disk_bytes)} on disk"])


def describe_expected_cost(cost: RunCost) -> str:
    """The cost of a search that is still to come."""
    words = describe_cost(cost, is_bound=not cost.at_least)
    return f"at least {words}" if cost.at_least else words if words.startswith("at most") else f"about {words}"


def name_model(record: Record | ForecastRecord) -> str:
    """Its path or hub id; without one it is the model that comes with the program."""
    model = record.config.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    return str(path) if path else EMBEDDED


def name_compressors(record: Record) -> str:
    """Those that were used: `magnitude and int8`; `nothing` where every component stayed as it was."""
    return join_names(sorted({one.compressor for one in record.components.values() if one.compressor}))


def join_names(names: Sequence[str]) -> str:
    """`a, b and c`; `nothing` of none."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else (names or ["nothing"])[0]


def clean_text(text: object) -> str:
    """Without what XML and HTML do not allow at all: each such character becomes a replacement character."""
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(text))


def format_base(record: Record, metric: str) -> str | None:
    """What the original scored; None where the run has not measured it."""
    score = record.base.get("scores", {}).get(metric)
    # A record that was read from a file has plain data there.
    return format_number(score["mean"] if isinstance(score, dict) else score.mean) if score else None
