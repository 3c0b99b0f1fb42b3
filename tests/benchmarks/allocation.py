"""Which allocation of sparsity keeps the text: schedules at equal sparsity, scored on prefixes they never saw.

    python -m tests.benchmarks allocation [--models DIR …] [--seeds 0 1 2] [--proof 256]

Every schedule prunes by magnitude to 20, 35 and 50 %, without training, deciding on 64 prefixes of 32 + 64 tokens
sampled from the base. Algorithm 1 goes there in rounds, or to each target in one. Differences are paired by prefix
against `uniform`, all seeds together.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.contracts import KeepRequest, Prefixes, Schedule
from compressor.plugins import installed
from compressor.record import Record
from compressor.run import Run
from compressor.settings import DataSettings, ModelSettings, Settings
from compressor.statistics import compare_paired, summarize
from compressor.sweep import Statistics
from compressor.tracking import NullTracker
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.schedules.fdt_allocation import FdtAllocation, Statistic
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.uniform import Uniform

TARGETS = [0.20, 0.35, 0.50]
METRICS = ("fdtm", "sdtm", "kl", "perplexity")
SCHEDULES: dict[str, list[Schedule]] = {
    "uniform": [Uniform(targets=TARGETS)],
    "global": [GlobalThreshold(targets=TARGETS)],
    "mean, in rounds": [FdtAllocation(targets=TARGETS)],
    "p75, in rounds": [FdtAllocation(targets=TARGETS, statistic=Statistic.p75)],
    "mean, one round": [FdtAllocation(targets=[target]) for target in TARGETS[1:]],
    "p75, one round": [FdtAllocation(targets=[target], statistic=Statistic.p75) for target in TARGETS[1:]],
}
"""Name -> the runs that together reach every target; the first target is one round in any case."""
BASELINE = "uniform"


@dataclass
class Measured:
    """Proof statistics of one schedule at one target, all seeds stacked, and its cost."""

    statistics: list[Statistics] = field(default_factory=list)
    trials: int = 0
    seconds: float = 0.0

    def stacked(self, metric: str) -> np.ndarray:
        return np.concatenate([statistics[metric] for statistics in self.statistics])


Found = dict[tuple[str, float], Measured]
"""By name and target."""


def run_schedule(
    schedule: Schedule, model: str | None, seed: int, proof: int
) -> Iterator[tuple[float, Statistics, int, float]]:
    """Target, proof statistics, trials and seconds of every round."""
    plugins = installed()
    settings = Settings(
        metric={name: plugins.metrics[name]() for name in METRICS},
        compressor={"magnitude": Magnitude()},
        schedule=schedule,
        model=ModelSettings(path=model),
        data=DataSettings(proof_prefixes=proof, seed=seed),
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings, plugins, Path(folder), NullTracker(), Record("running", {}, {}))
        run.load()
        run.build_references()
        while (request := run.dialogue.propose()) is not None:
            run.dialogue.tell(run.search.answer(request))
            if isinstance(request, KeepRequest):
                kept = run.search.rounds[-1]
                statistics = run.sweeps[Prefixes.PROOF].score_current()
                yield float(request.target or 0.0), statistics, kept.trials, kept.seconds


def measure_model(model: str | None, names: list[str], seeds: list[int], proof: int) -> Found:
    found: Found = {}
    for name in names:
        for schedule, seed in itertools.product(SCHEDULES[name], seeds):
            for target, statistics, trials, seconds in run_schedule(schedule, model, seed, proof):
                entry = found.setdefault((name, target), Measured())
                entry.statistics.append(statistics)
                entry.trials += trials
                entry.seconds += seconds
    return found


def describe_rows(model: str, found: Found) -> Iterator[dict[str, Any]]:
    """One row per target and schedule: value and interval of each metric, and the paired difference to the baseline."""
    metrics = {name: installed().metrics[name]() for name in METRICS}
    for (name, target), entry in sorted(found.items(), key=lambda item: item[0][1]):
        row: dict[str, Any] = {"model": model, "target": target, "schedule": name}
        for metric_name, metric in metrics.items():
            rows = entry.stacked(metric_name)
            score = summarize(metric, rows)
            row[metric_name] = [score.mean, score.low, score.high]
            if metric_name == "fdtm":
                row["fdtm p75"] = [score.p75, score.p75_low, score.p75_high]
            if name != BASELINE:
                other = found[BASELINE, target].stacked(metric_name)
                row[f"{metric_name} − {BASELINE}"] = list(compare_paired(metric, rows, other))
        row["trials"], row["seconds"] = entry.trials, entry.seconds
        yield row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["tiny"])
    parser.add_argument("--schedules", nargs="*", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--proof", type=int, default=256)
    options = parser.parse_args(arguments)
    names = [BASELINE, *(name for name in options.schedules if name != BASELINE)]
    for model in options.models:
        path = None if model == "tiny" else model
        yield from describe_rows(Path(model).name, measure_model(path, names, options.seeds, options.proof))
