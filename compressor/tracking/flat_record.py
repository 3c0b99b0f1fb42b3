"""A run's record as flat keys with plain numbers, which a tracker can show in tables and charts."""

import math
from collections.abc import Mapping
from typing import Any

from compressor.artifacts.files import to_strict
from compressor.artifacts.run_record import ComponentRecord, Record, RoundRecord, TrainingPoint
from compressor.contracts import Score

SUFFIXES = {"mean": "", "low": "_low", "high": "_high", "p75": "_p75"}
"""Statistic -> the suffix that its key has after the name of the metric."""


def flatten_scores(prefix: str, scores: Mapping[str, Score]) -> dict[str, float]:
    """The mean under `{prefix}{metric}`; the ends of its interval and the 75th percentile have a suffix."""
    return {
        f"{prefix}{metric}{suffix}": score.statistic(statistic)
        for metric, score in scores.items()
        for statistic, suffix in SUFFIXES.items()
    }


def flatten_round(index: int, round_record: RoundRecord) -> dict[str, Any]:
    """One point of the run's charts."""
    keys = ("target", "amount", "trials", "seconds")
    numbers = {"round/index": index} | {f"round/{key}": getattr(round_record, key) for key in keys}
    return _keep_finite(numbers | flatten_scores("round/", round_record.scores))


def flatten_point(point: TrainingPoint) -> dict[str, Any]:
    """One point of the charts of training."""
    keys = ("step", "loss", "learning_rate", "tokens_per_second")
    return _keep_finite({f"training/{key}": getattr(point, key) for key in keys})


def flatten_record(record: Record) -> dict[str, Any]:
    """The run's summary, a number or a word for each key: of the base under `base/`, of the result under `final/`."""
    summary: dict[str, Any] = {"status": record.status, "seconds": record.seconds, "noise_floor": record.noise_floor}
    summary |= {f"base/{key}": value for key, value in record.base.items() if isinstance(value, int | float)}
    summary |= flatten_scores("base/", record.base.get("scores", {}))
    if record.export:
        files = {"export/": record.export, "export/gguf/": record.export.gguf}
        for prefix, file in files.items():
            if file and file.verification:
                summary[f"{prefix}verification"] = file.verification.state
                summary[f"{prefix}not_verified_because"] = file.verification.reason or None
    if record.final:
        summary |= {f"final/{key}": value for key, value in vars(record.final).items() if key != "scores"}
        summary |= flatten_scores("final/", record.final.scores)
    return _keep_finite(summary)


def flatten_component(name: str, component: ComponentRecord) -> dict[str, Any]:
    """A row of the table of components; None in place of a number that is not finite."""
    row = {"name": name} | {key: value for key, value in vars(component).items() if key != "shape"}
    row["rows"], row["columns"] = component.shape
    plain: dict[str, Any] = to_strict(row)
    return plain


def _keep_finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    # A chart leaves a gap where a number is missing, but shows NaN as text or as zero.
    return {
        key: value
        for key, value in numbers.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
