"""`gptq` against llmcompressor's on the same calibration tokens: what it does to the text, and seconds.

    python -m tests.benchmarks gptq [--environments FOLDER] [--models NAME …] [--seeds 0 1 2 3 4] [--keep FOLDER]

All matrices of the decoder layers whose width the groups divide, 4 bits, groups of 64, damping 0.01, blocks of 128, in
both orders, sequentially: inputs are those of a model whose lower layers are compressed. Both calibrate on the same 64
sequences of 32 + 64 tokens that the base said, in float32. Weights of both, and `int4` round to nearest beside them, go
through 256 fresh prefixes; differences are paired by prefix against llmcompressor. Grids are the same. Seconds are of
calibration and rounding with the model loaded, `CPU s` those of the process, medians over seeds. llmcompressor is
looked for in FOLDER/llmcompressor, else in this environment.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from compressor.commands.run import Run
from compressor.contracts import Prefixes, Treatment
from compressor.evaluation.evaluator import SequenceValues
from compressor_plugins.quantization.gptq import Gptq, Order
from compressor_plugins.quantization.int4 import Int4
from tests.support.trial_weights import GivenWeights

from .asking import ask_peer
from .keeping import Keep
from .mixed import BATCH, GROUP, locate
from .peers.gptq import Rounding
from .runs import MODELS, open_run
from .scores import METRICS, compare, describe

BASELINE = "llmcompressor"


@dataclass
class Outcome:
    """What a method does on fresh prefixes; None as seconds where nothing was calibrated."""

    values: SequenceValues
    seconds: float | None = None
    busy: float | None = None
    version: str = ""


def choose_components(run: Run) -> list[str]:
    """Those whose width the groups divide: llmcompressor refuses others."""
    return [name for name, component in run.setup.model.components.items() if component.shape[1] % GROUP == 0]


def measure_seed(model: str, order: Order, seed: int, options: argparse.Namespace) -> dict[str, Outcome]:
    """By method; llmcompressor is missing where it cannot be had."""
    compressor = Gptq(group=GROUP, order=order)
    found = {}
    prefixes = {"prefixes": options.prefixes, "proof_prefixes": options.proof}
    with open_run(model, [compressor, Int4(group=GROUP)], METRICS, seed=seed, **prefixes) as run:
        names, components = choose_components(run), run.setup.model.components
        treated = {name: 1 - 4 / components[name].stored_bits for name in names}
        proof = run.setup.evaluators[Prefixes.PROOF]
        rounded = {name: Treatment("int4", amount) for name, amount in treated.items()}
        found["round to nearest"] = Outcome(proof.score_all([rounded], METRICS)[0])
        if peer := compress_there(run, model, compressor, names, options.environments):
            found[BASELINE] = peer
        began, busy = time.perf_counter(), time.process_time()
        run.session.applied.apply({name: Treatment("gptq", amount) for name, amount in treated.items()}, is_last=True)
        seconds = time.perf_counter() - began, time.process_time() - busy
        found["gptq"] = Outcome(proof.score_current(METRICS), *seconds)
    return found


def compress_there(
    run: Run, model: str, compressor: Gptq, names: list[str], environments: Path | None
) -> Outcome | None:
    """Weights by llmcompressor, put on the model for the time of a trial."""
    tokens = run.setup.evaluators[Prefixes.SEARCH].reference.tokens[:, :-1].tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.safetensors")
        rounding = Rounding(
            model=locate(model), tokens=tokens, batch=BATCH, components=names, bits=4, group=GROUP, weights=path,
            damping=compressor.damping, block=compressor.block, order=compressor.order.value,
        )  # fmt: skip
        answer = ask_peer("gptq", "llmcompressor", environments, asdict(rounding))
        if answer is None:
            return None
        weights = load_file(path)
    given = GivenWeights()
    evaluator = replace(run.setup.evaluators[Prefixes.PROOF], weight_source=given, engine=None)
    (values,) = evaluator.score_all([given.add_plan({name: weights[name] for name in names})], METRICS)
    return Outcome(values, answer["seconds"], answer["busy"], answer["version"])


def describe_rows(seeds: list[dict[str, Outcome]]) -> Iterator[dict[str, Any]]:
    """A row for each method, over all seeds; differences where llmcompressor has them all."""
    bases = [answers[BASELINE].values for answers in seeds if BASELINE in answers]
    for method in seeds[0]:
        found = [answers[method] for answers in seeds]
        row: dict[str, Any] = {"method": method, "seeds": len(found), "version": found[0].version}
        for name, times in (("seconds", [one.seconds for one in found]), ("CPU s", [one.busy for one in found])):
            if None not in times:
                row[name] = float(np.median([seconds for seconds in times if seconds is not None]))
        values = [one.values for one in found]
        row |= describe(values)
        if method != BASELINE and len(bases) == len(found):
            row |= {f"{name} − {BASELINE}": cell for name, cell in compare(values, bases).items()}
        yield row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--prefixes", type=int, default=64)
    parser.add_argument("--proof", type=int, default=256)
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    keep = Keep(options.keep)
    for model, order in itertools.product(options.models, Order):
        seeds = []
        for seed in options.seeds:
            key = (model, order.name, seed, options.prefixes, options.proof)
            found = keep[key] if key in keep else measure_seed(model, order, seed, options)
            if BASELINE in found:
                keep[key] = found
            seeds.append(found)
        for row in describe_rows(seeds):
            yield {"model": model, "order": order.name, **row}
