"""Many runs and long searches: seconds and peak memory of a comparison, and of the page of a run.

python -m tests.benchmarks load [--jobs 1000] [--lines 100000]

A comparison of so many finished runs, and the page of one run with so many lines in scores.jsonl and prefixes in
sequences.jsonl; each in a process of its own.
"""

import argparse
import io
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from compressor.artifacts.run_record import FinalRecord, MetricRecord, Record
from compressor.contracts import Score
from compressor.report import write_report
from compressor.report.comparison import make_comparison_table, write_comparison

from .apart import measure_apart


def make_record() -> Record:
    score = Score(16.4, 16.4, 16.4, 16.4, 0.0, 64.0, 15.0, 18.0, 16.4, 16.4, 8)
    final = FinalRecord(0.5, 0.5, 16.0, 8.0, 1_500_000, {"fdtm": score, "kl": score})
    return Record("done", {}, {}, metrics={"fdtm": MetricRecord("FDT"), "kl": MetricRecord("KL")}, final=final)


def read_peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_many(folder: str, jobs: int) -> dict[str, Any]:
    """A comparison of runs in `folder`: writing comparison.json, and the table."""
    for job in range(jobs):
        place = Path(folder) / str(job)
        write_report(make_record(), place)
        (place / ".hydra").mkdir()
        (place / ".hydra" / "overrides.yaml").write_text(f"- seed={job}\n- model=tiny\n")
    before, began = read_peak(), time.perf_counter()
    found = write_comparison(Path(folder))
    Console(file=io.StringIO(), width=120).print(make_comparison_table(found))
    return {"seconds": time.perf_counter() - began, "peak MiB": read_peak(), "before MiB": before}


def write_long_page(folder: str, lines: int) -> dict[str, Any]:
    """The report of a run with so many trials and prefixes."""
    place = Path(folder)
    trial = json.dumps({"round": 0, "plan": {f"model.layers.{n}.mlp": ["int8", 0.5] for n in range(4)}, "fdtm": 16.4})
    (place / "scores.jsonl").write_text(f"{trial}\n" * lines)
    (place / "sequences.jsonl").write_text(
        "".join(json.dumps({"index": n, "fdtm": n % 64, "kl": n % 97 / 97}) + "\n" for n in range(lines))
    )
    before, began = read_peak(), time.perf_counter()
    write_report(make_record(), place)
    return {"seconds": time.perf_counter() - began, "peak MiB": read_peak(), "before MiB": before}


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=100_000)
    options = parser.parse_args(arguments)
    for name, work, size in (
        ("comparison", compare_many, options.jobs),
        ("page", write_long_page, options.lines),
    ):
        with tempfile.TemporaryDirectory() as folder:
            yield {"what": name, "size": size, **measure_apart(work, folder, size)}
