"""Memory of a long search: its slope over the last 30 minutes of the run, in percent per hour.

python -m tests.benchmarks memory [--minutes 65] [--layers 43] [--prefixes 1000] [--schedules budget fdt_allocation]

The layers of the embedded model are repeated: 43 of them are 301 components. Each schedule is a run of its own; one
that is still searching after so many minutes is stopped by SIGTERM.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import compressor

SECONDS = 2.0
"""Between two readings of the memory."""
LATE = 1800.0
"""Seconds at the end to which the slope belongs."""
WINDOW = 120.0
STEADY = 1.0
"""The largest slope in percent per hour that counts as steady."""
STOPPED = 128 + signal.SIGTERM


def write_deep_model(folder: Path, layers: int) -> None:
    """The embedded model with its layers repeated."""
    tiny = Path(compressor.__file__).parent / "tiny"
    source = AutoModelForCausalLM.from_pretrained(tiny)
    config = AutoConfig.from_pretrained(tiny, num_hidden_layers=layers)
    deep = AutoModelForCausalLM.from_config(config)
    deep.load_state_dict(source.state_dict(), strict=False)
    stored = source.model.layers
    for index, layer in enumerate(deep.model.layers):
        layer.load_state_dict(stored[index % len(stored)].state_dict())
    deep.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)


def read_memory(process: psutil.Process) -> int:
    """Bytes that belong to the process alone, so without mapped files."""
    return int(process.memory_full_info().uss)


def run_watched(command: list[str], minutes: float) -> tuple[int, list[tuple[float, int]]]:
    """The exit status of a command, and its memory over time as (seconds, bytes); stopped after so many minutes."""
    began, readings = time.monotonic(), []
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process, is_stopped = psutil.Process(started.pid), False
    while started.poll() is None:
        try:
            size = read_memory(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            break
        seconds = time.monotonic() - began
        if size:  # a process that has ended has none
            readings.append((seconds, size))
        if not is_stopped and seconds > minutes * 60:
            started.send_signal(signal.SIGTERM)
            is_stopped = True
        time.sleep(SECONDS)
    return started.wait(), readings


def choose_late(readings: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The readings of the last 30 minutes."""
    return [reading for reading in readings if reading[0] > readings[-1][0] - LATE]


def choose_lowest(readings: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The lowest reading in every two minutes, because single batches come and go."""
    lowest: dict[int, tuple[float, int]] = {}
    for seconds, size in readings:
        window = int(seconds // WINDOW)
        lowest[window] = min(lowest.get(window, (seconds, size)), (seconds, size), key=lambda reading: reading[1])
    return [*lowest.values()]


def find_slope(readings: list[tuple[float, int]]) -> float:
    """The slope of a line through the readings, in percent of their mean per hour."""
    times, sizes = np.array(readings).T
    return float(np.polyfit(times, sizes, 1)[0] / sizes.mean() * 3600 * 100)


def measure_schedule(schedule: str, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "compressor.commands.entry", "run", "model=hf", f"model.path={model}"]
    command += [f"schedule={schedule}", "compressor=magnitude", "metric=[fdtm,kl]", f"data.prefixes={options.prefixes}"]
    command += ["data.prefix_tokens=32", "data.continuation_tokens=32", "tracking=none", "export.verify=false"]
    command += [f"hydra.run.dir={folder / schedule}", *options.overrides]
    status, readings = run_watched(command, options.minutes)
    (folder / f"{schedule}.json").write_text(json.dumps(readings))
    late = choose_late(readings)
    sizes = [size / 2**20 for _, size in late]
    return {
        "schedule": schedule,
        "exit status": status,
        "minutes": readings[-1][0] / 60,
        "peak MiB": max(size for _, size in readings) / 2**20,
        "lowest MiB": min(sizes),
        "median MiB": float(np.median(sizes)),
        "highest MiB": max(sizes),
        "slope %/h": (slope := find_slope(late)),
        "slope of the lowest %/h": find_slope(choose_lowest(late)),
        "passed": status in (0, STOPPED) and slope < STEADY,
    }


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=65)
    parser.add_argument("--layers", type=int, default=43)
    parser.add_argument("--prefixes", type=int, default=1000)
    parser.add_argument("--schedules", nargs="+", default=["budget", "fdt_allocation"])
    parser.add_argument("--keep", type=Path, help="a folder for the runs and the readings")
    parser.add_argument("--overrides", nargs="*", default=[])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        write_deep_model(model := Path(scratch) / "model", options.layers)
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for schedule in options.schedules:
            yield measure_schedule(schedule, model, folder, options)
