"""What one backward pass costs: time in plain forward passes, and memory in models.

    python -m tests.benchmarks sensitivity [--models NAME …] [--repeat 5] [--random-layers 12]

Twenty sparsity levels of magnitude pruning and four integer treatments (8, 4, 3, 2 bits), all components, one request
on 64 prefixes of 32 + 64 tokens; beside it a plain scoring pass over the same prefixes. `random` is a Llama of 12
layers with random weights, on 64 prefixes and, where weights outweigh activations, on 8. Memory is the peak of a
process that only loads and scores, and of one that also estimates, above what Python and its libraries take.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.contracts import EstimateRequest, Prefixes, Treatment
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.rtn import Rtn

from .apart import measure_apart, read_peak
from .runs import MODELS, make_random, open_run

WIDTHS = [8, 4, 3, 2]


def make_options(stored_bits: int) -> list[Treatment]:
    pruned = [Treatment("magnitude", level / 20) for level in range(1, 21)]
    return pruned + [Treatment("rtn", 1 - bits / stored_bits) for bits in WIDTHS]


def measure_here(model: str, prefixes: int, repeat: int, estimates: bool) -> dict[str, float]:
    """Seconds and memory in this process."""
    libraries = read_peak()
    with open_run(model, [Magnitude(), Rtn(bits=WIDTHS)], ["kl"], prefixes=prefixes, proof_prefixes=1) as run:
        options = {c.name: make_options(c.stored_bits) for c in run.setup.model.components.values()}
        seconds: dict[str, list[float]] = {"forward": [], "estimate": []}
        for _ in range(repeat):
            began = time.perf_counter()
            run.setup.evaluators[Prefixes.SEARCH].score_current(["kl"])
            seconds["forward"].append(time.perf_counter() - began)
            if estimates:
                began = time.perf_counter()
                run.session.estimate(EstimateRequest(options, "kl"))
                seconds["estimate"].append(time.perf_counter() - began)
        parameters = run.setup.model.base_parameters
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    return medians | {"peak": read_peak() - libraries, "model": parameters * 4 / 2**20}


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*MODELS, "random"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--random-layers", type=int, default=12)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            model = name
            if name == "random":
                model = str(Path(folder) / name)
                make_random(model, options.random_layers, 640)
            for prefixes in (8, 64) if name == "random" else (64,):
                plain = measure_apart(measure_here, model, prefixes, options.repeat, False)
                whole = measure_apart(measure_here, model, prefixes, options.repeat, True)
                yield {
                    "model": name,
                    "prefixes": prefixes,
                    "forward s": whole["forward"],
                    "estimate s": whole["estimate"],
                    "forward passes": whole["estimate"] / whole["forward"],
                    "model MiB": whole["model"],
                    "peak, scoring": plain["peak"],
                    "peak, estimating": whole["peak"],
                    "peak / model": whole["peak"] / whole["model"],
                }
