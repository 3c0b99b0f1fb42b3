"""A model that stays in its files: memory of a sweep and of a backward pass, and what it costs in time.

    python -m tests.benchmarks streaming [--layers 16] [--width 1536] [--prefixes 4]

A Llama with random weights (453 million by default, float32) and one trial per component on a few short prefixes, and
then one estimate of six sparsity levels of every component by a backward pass; each in a process of its own, once as
usual and once with `model.stream`. Memory is the peak of what belongs to the process alone (RssAnon): pages of mapped
files can be taken away at any time. Results are checked equal.
"""

import argparse
import hashlib
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compressor.contracts import EstimateRequest, Prefixes, Treatment
from compressor_plugins.pruning.magnitude import Magnitude

from .apart import measure_apart
from .runs import make_random, open_run


def read_anonymous() -> float:
    """MiB of this process that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


@contextmanager
def watched_memory(peak: dict[str, float]) -> Iterator[None]:
    """Inside, `peak["MiB"]` follows the most that was held."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak["MiB"] = max(peak.get("MiB", 0.0), read_anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure_here(folder: str, stream: bool, prefixes: int) -> dict[str, Any]:
    """Seconds, memory above the libraries, and a fingerprint of what came out, in this process."""
    peak: dict[str, float] = {}
    before = read_anonymous()
    sizes = {"prefixes": prefixes, "proof_prefixes": 1, "prefix_tokens": 4, "continuation_tokens": 12}
    with watched_memory(peak), open_run(folder, [Magnitude()], ["kl"], stream=stream, **sizes) as run:
        evaluator, began = run.setup.evaluators[Prefixes.SEARCH], time.perf_counter()
        trials = [{name: Treatment("magnitude", 0.5)} for name in run.setup.model.components]
        scored = np.stack([values["kl"] for values in evaluator.score_all(trials)])
        swept = time.perf_counter()
        options = {
            name: [Treatment("magnitude", level / 10) for level in range(1, 7)] for name in run.setup.model.components
        }
        estimates = run.session.estimate(EstimateRequest(options, "kl"))
        walked = time.perf_counter()
    found = np.stack([estimate.changes for estimate in estimates.values()])
    digest = hashlib.sha256(scored.tobytes() + found.tobytes()).hexdigest()
    return {"sweep s": swept - began, "estimate s": walked - swept, "MiB": peak["MiB"] - before, "digest": digest}


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--prefixes", type=int, default=4)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        size = measure_apart(make_random, folder, options.layers, options.width)
        rows = [measure_apart(measure_here, folder, stream, options.prefixes) for stream in (False, True)]
    equal = len({row.pop("digest") for row in rows}) == 1
    for stream, row in zip((False, True), rows, strict=True):
        yield {"stream": stream, "model MiB": size / 2**20, **row, "equal": equal}
