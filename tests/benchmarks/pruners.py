"""Pruning without training: a budget for every row and least squares, against Wanda and SparseGPT.

    python -m tests.benchmarks pruners [--models tiny …] [--targets 0.35 0.5 0.6] [--prefixes 128] [--keep FOLDER]

Wanda and SparseGPT prune every matrix by the same amount, as their papers do. Ours is `compressor=swaps` with amounts
for each row and `recovery=least_squares`. All arms have the same seed, search prefixes and fresh prefixes of 32 + 64
tokens; the models of `shared/models` take theirs from a text of their kind, `tiny` samples them. KL is in nats per
token; `to the better` is the difference to the better of both in KL, on the same prefixes, with its 95 % interval.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import compressor
from compressor.contracts import Metric
from compressor.evaluation.bootstrap import Array, compare_paired, summarize
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.sdtm import Sdtm

from .runs import MODELS, SHARED, find_model

OURS = "ours"
ARMS: dict[str, dict[str, Any]] = {
    "wanda": {"schedule": "uniform", "compressor": "wanda"},
    "sparsegpt": {"schedule": "uniform", "compressor": "sparsegpt"},
    OURS: {
        "schedule": "budget",
        "schedule.granularity": "row",
        "compressor": "swaps",
        "recovery": "least_squares",
    },
}
METRICS: tuple[Metric, ...] = (Fdtm(), Sdtm(), Kl())
TEXT = SHARED.parent / "data" / "tinystories" / "tinystories_clean.txt"


def read_values(folder: Path) -> dict[str, Array]:
    """Metric -> `[sequence, 1]` of the fresh prefixes of a run."""
    lines = [json.loads(line) for line in (folder / "sequences.jsonl").read_text().splitlines()]
    return {metric.name: np.array([[line[metric.name]] for line in lines]) for metric in METRICS}


def compress(model: str, target: float, prefixes: int, arm: str, folder: Path) -> dict[str, Array]:
    """The values of one arm; a folder that holds them already is read."""
    if not (folder / "sequences.jsonl").is_file():
        path = find_model(model)
        source = {"model.path": path, "data": "text", "data.path": str(TEXT)} if path else {}
        options = {"metric": [metric.name for metric in METRICS], "tracking": "none", "export.verify": False}
        budget = {"schedule.targets": [target], "data.prefixes": prefixes}
        compressor.run(ARMS[arm] | source | options | budget, folder=folder)
    return read_values(folder)


def describe(metric: Metric, values: Array) -> list[float]:
    score = summarize(metric, values)
    return [score.mean, score.low, score.high]


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--targets", nargs="+", type=float, default=[0.35, 0.5, 0.6])
    parser.add_argument("--prefixes", type=int, default=128)
    parser.add_argument("--keep", type=Path, help="a folder for the runs; those that it holds are not run again")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        for model in options.models:
            for target in options.targets:
                place = (options.keep or Path(scratch)) / f"{Path(model).name}-{target:g}"
                found = {arm: compress(model, target, options.prefixes, arm, place / arm) for arm in ARMS}
                better = min((arm for arm in ARMS if arm != OURS), key=lambda arm: float(found[arm]["kl"].mean()))
                for arm, values in found.items():
                    row = {"model": Path(model).name, "target": target, "arm": arm}
                    row |= {metric.name: describe(metric, values[metric.name]) for metric in METRICS}
                    if arm == OURS:
                        difference = compare_paired(METRICS[-1], values["kl"], found[better]["kl"])
                        row |= {"to the better": list(difference), "better": better, "passed": difference[2] < 0}
                    yield row
