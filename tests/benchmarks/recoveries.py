"""The three recoveries side by side, with the same CPU seconds each.

    python -m tests.benchmarks recoveries [--model tiny] [--targets 0.5 0.6 0.75] [--seconds 15 60 180] [--prefixes 128]
        [--windows 512] [--steps finetune=15 reconstruct=20 …]

Every matrix loses the same share of its weights by `magnitude`, then one recovery follows. `seconds` are those of the
processor in it, without the time for sampling its texts. `least_squares` takes what it takes; of the other two, the
number of steps is chosen by the seconds of two short trainings, or given. All arms have the same seed, search prefixes,
fresh prefixes and texts; the learning rates are those of `RATES`.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import compressor
from compressor.artifacts.run_record import RecoveryRecord
from compressor.recovery.recoverer import Recoverer

from .pruners import METRICS, describe, read_values
from .runs import find_model

RATES = {"finetune": 3e-3, "reconstruct": 1e-2}
"""The best for `tiny` of 3e-4, 1e-3, 3e-3 and, for `reconstruct`, 1e-2, at 60 %."""
SHORT = (4, 24)
"""Steps of the two short trainings. Passes over all windows come before the first step of `reconstruct`."""
COMMON = {"metric": [metric.name for metric in METRICS], "tracking": "none", "export.verify": False}


@contextmanager
def timed() -> Iterator[list[float]]:
    """Inside, the CPU seconds of every recovery are collected."""
    seconds: list[float] = []
    train = Recoverer.train

    def measure_one(self: Recoverer, *arguments: Any) -> RecoveryRecord:  # noqa: ANN401 - those of `train`
        began = time.process_time()
        try:
            return train(self, *arguments)
        finally:
            seconds.append(time.process_time() - began)

    with patch.object(Recoverer, "train", measure_one):
        yield seconds


def recover(name: str, steps: int | None, windows: int, options: dict[str, Any], folder: Path) -> float:
    """Prune and recover; returns the CPU seconds of the recovery, 0 without one."""
    chosen: dict[str, Any] = {"recovery": name}
    if steps is not None:
        chosen |= {"recovery.steps": steps, "recovery.learning_rate": RATES[name], "recovery.windows": windows}
        chosen |= {"recovery.released": 0} if name == "finetune" else {}
    with timed() as seconds:
        compressor.run(COMMON | {"schedule": "uniform"} | options | chosen, folder=folder)
    return sum(seconds)


def choose_steps(name: str, wanted: list[float], windows: int, options: dict[str, Any], scratch: Path) -> list[int]:
    """The numbers of steps that take about so many seconds."""
    few = {**options, "data.prefixes": 2}
    short, long = (recover(name, steps, windows, few, scratch / f"{name}-{steps}") for steps in SHORT)
    each = max(short / 1000, (long - short) / (SHORT[1] - SHORT[0]))  # more than the noise of a clock
    fixed = short - SHORT[0] * each
    return [max(1, round((seconds - fixed) / each)) for seconds in wanted]


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.6, 0.75])
    parser.add_argument("--seconds", nargs="+", type=float, default=[15, 60, 180])
    parser.add_argument("--prefixes", type=int, default=128)
    parser.add_argument("--windows", type=int, default=512)
    parser.add_argument("--steps", nargs="+", help="recoveries and their steps, in place of seconds")
    chosen = parser.parse_args(arguments)
    path = find_model(chosen.model)
    common: dict[str, Any] = {"model.path": path} if path else {}
    common |= {"data.prefixes": chosen.prefixes}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        arms: list[tuple[str, int | None]] = [("none", None), ("least_squares", None)]
        if chosen.steps:
            arms += [(name, int(number)) for name, _, number in (given.partition("=") for given in chosen.steps)]
        else:
            first = common | {"schedule.targets": chosen.targets[:1]}
            steps = {name: choose_steps(name, chosen.seconds, chosen.windows, first, place) for name in RATES}
            arms += [(name, steps[name][index]) for index in range(len(chosen.seconds)) for name in RATES]
        for target in chosen.targets:
            for name, number in arms:
                folder = place / f"{target}-{name}-{number}"
                seconds = recover(name, number, chosen.windows, common | {"schedule.targets": [target]}, folder)
                values = read_values(folder)
                row = {"removed": target, "recovery": name, "steps": number or 0, "seconds": seconds}
                yield row | {metric.name: describe(metric, values[metric.name]) for metric in METRICS}
