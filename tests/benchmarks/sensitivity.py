"""What one backward pass costs: time in plain forward passes, and memory in models.

    python -m tests.benchmarks sensitivity [--models NAME …] [--repeat 5] [--random-layers 12]

Twenty sparsity levels of magnitude pruning and four integer treatments (8, 4, 3, 2 bits), all components, one request
on 64 prefixes of 32 + 64 tokens; beside it a plain scoring pass over the same prefixes. `random` is a Llama of 12
layers with random weights, on 64 prefixes and, where weights outweigh activations, on 8. Memory is the peak of a
process that only loads and scores, and of one that also estimates, above what Python and its libraries take.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.contracts import EstimateRequest, Prefixes
from compressor.values import Treatment
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.rtn import Rtn

from .runs import MODELS, open_run

WIDTHS = [8, 4, 3, 2]


def list_options(stored_bits: int) -> list[Treatment]:
    pruned = [Treatment("magnitude", level / 20) for level in range(1, 21)]
    return pruned + [Treatment("rtn", 1 - bits / stored_bits) for bits in WIDTHS]


def read_peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_here(model: str, prefixes: int, repeat: int, estimates: bool) -> dict[str, float]:
    """Seconds and memory in this process."""
    libraries = read_peak()
    with open_run(model, [Magnitude(), Rtn(bits=WIDTHS)], ["kl"], prefixes=prefixes, proof_prefixes=1) as run:
        options = {c.name: list_options(c.stored_bits) for c in run.model.components.values()}
        seconds: dict[str, list[float]] = {"forward": [], "estimate": []}
        for _ in range(repeat):
            began = time.perf_counter()
            run.sweeps[Prefixes.SEARCH].score_current(["kl"])
            seconds["forward"].append(time.perf_counter() - began)
            if estimates:
                began = time.perf_counter()
                run.search.answer(EstimateRequest(options, "kl"))
                seconds["estimate"].append(time.perf_counter() - began)
        parameters = run.model.base_parameters
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    return medians | {"peak": read_peak() - libraries, "model": parameters * 4 / 2**20}


def measure_apart(model: str, prefixes: int, repeat: int, estimates: bool) -> dict[str, float]:
    """The same in a process of its own."""
    call = f"measure_here({model!r}, {prefixes}, {repeat}, {estimates})"
    code = f"from tests.benchmarks.sensitivity import *; print(json.dumps({call}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def make_random(folder: Path, layers: int) -> str:
    """A Llama with random weights: 12 layers of width 640 are 63 million."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048, hidden_size=640, intermediate_size=1728, num_hidden_layers=layers, num_attention_heads=10,
        num_key_value_heads=10, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*MODELS, "random"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--random-layers", type=int, default=12)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            model = make_random(Path(folder) / "random", options.random_layers) if name == "random" else name
            for prefixes in (8, 64) if name == "random" else (64,):
                plain = measure_apart(model, prefixes, options.repeat, False)
                whole = measure_apart(model, prefixes, options.repeat, True)
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
