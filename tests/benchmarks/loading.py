"""Models that run packed: memory and tokens per second of dense and packed folders.

    python -m tests.benchmarks loading [--model tiny] [--layers 8] [--width 512] [--prefill 512] [--decode 64]
        [--repeats 5] [--threads 1] [--forms int4 int8 w8a8]

The embedded model, and a Llama with random weights (none with `--layers 0`), dense in float32 and bfloat16, and packed
by `int4` in groups of 32, by `int8` by row, and by `int8` with inputs in 8 bits too (`w8a8`), in both dtypes. Each in a
process of its own. `held MiB` are all parameters and buffers; `steady MiB` is what belongs to the process alone
(RssAnon) beyond the libraries once the model is loaded, `peak MiB` the most of that over loading and running. Tokens
per second are those of `prefill` tokens at once (as many as the model's context leaves room for), and of `decode`
tokens one by one after a single one: the median of `repeats`, and the slowest and the fastest.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import compressor
from compressor import export
from compressor.compression.apply import make_replacement
from compressor.contracts import Compressor, Context
from compressor.models import load_model
from compressor.settings import DType, ModelSettings
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Activations, Int8

from .apart import measure_apart
from .runs import find_model, make_random
from .streaming import read_anonymous, watched_memory

FORMS: dict[str, Compressor] = {
    "int4": Int4(group=32),
    "int8": Int8(),
    "w8a8": Int8(activations=Activations.token),
}
DTYPES = ("float32", "bfloat16")


def save_dense(source: str | None, target: str) -> tuple[int, float]:
    """Bytes of the weights of a dense folder in bfloat16, and that no component there is packed."""
    model = load_model(ModelSettings(path=source, dtype=DType.bfloat16))
    model.network.save_pretrained(target)
    return sum(path.stat().st_size for path in Path(target).glob("*.safetensors")), 0.0


def save_packed(source: str, target: str, form: str) -> tuple[int, float]:
    """Bytes of the weights of a folder with components in such integers, and the share that is packed."""
    model = load_model(ModelSettings(path=source, dtype=DType.bfloat16))
    method, quantized = FORMS[form], {}
    for name, component in model.components.items():
        compressed = method.compress(model.read(name), method.offer(component).largest, Context(component))
        model.write(name, make_replacement(compressed))
        quantized[name] = compressed.quantized
    exported = export.save("compressed-tensors", model, Path(target), {}, {}, quantized)
    return exported.bytes, len(exported.packed) / len(quantized)


def measure_rates(work: Callable[[], object], tokens: int, repeats: int) -> list[float]:
    """Tokens per second of `work` on so many: median, lowest and highest, after one time to warm up."""
    work()
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        rates.append(tokens / (time.perf_counter() - began))
    return [statistics.median(rates), min(rates), max(rates)]


def measure_here(folder: str, dtype: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Memory and speed of one folder in this process."""
    torch.set_num_threads(sizes["threads"])
    peak: dict[str, float] = {}
    gc.collect()
    before = read_anonymous()
    with watched_memory(peak), torch.inference_mode():
        network = compressor.load(folder, device="cpu", dtype=dtype)
        gc.collect()
        steady = read_anonymous() - before
        prefill = min(sizes["prefill"], network.config.max_position_embeddings - sizes["decode"] - 1)
        tokens = torch.arange(prefill)[None] * 7 % network.config.vocab_size

        def decode() -> None:
            step, cache = tokens[:, :1], None
            for _ in range(sizes["decode"]):
                answer = network(step, past_key_values=cache, use_cache=True)
                step, cache = answer.logits[:, -1:].argmax(-1), answer.past_key_values

        read = measure_rates(lambda: network(tokens, use_cache=False, logits_to_keep=1), prefill, sizes["repeats"])
        said = measure_rates(decode, sizes["decode"], sizes["repeats"])
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*network.parameters(), *network.buffers()]}
    memory = {"held MiB": sum(tensors.values()) / 2**20, "steady MiB": steady, "peak MiB": peak["MiB"] - before}
    return {**memory, "prefill": prefill, "prefill tokens/s": read, "decode tokens/s": said}


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    numbers = {
        "layers": 8,
        "width": 512,
        "prefill": 512,
        "decode": 64,
        "repeats": 5,
        "threads": torch.get_num_threads(),
    }
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("prefill", "decode", "repeats", "threads")}
    with tempfile.TemporaryDirectory() as scratch:
        sources = {options.model: find_model(options.model)}
        if options.layers:
            sources[f"random {options.layers}×{options.width}"] = f"{scratch}/random"
            context = options.prefill + options.decode + 1
            measure_apart(make_random, f"{scratch}/random", options.layers, options.width, context)
        for name, source in sources.items():
            dense = f"{scratch}/{name} dense"
            folders = {"dense": (dense, *measure_apart(save_dense, source, dense))}
            for form in options.forms:
                packed = f"{scratch}/{name} {form}"
                folders[form] = packed, *measure_apart(save_packed, dense, packed, form)
            for form, (folder, size, share) in folders.items():
                for dtype in DTYPES:
                    row = {"model": name, "form": form, "packed": share, "folder MiB": size / 2**20}
                    measured = measure_apart(measure_here, folder, dtype, sizes)
                    yield {**row, "dtype": dtype, "threads": options.threads, **measured}
