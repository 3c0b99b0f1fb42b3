"""The sweep engine against plain forward passes, and against generating with both models.

    python -m tests.benchmarks sweep [--models NAME …] [--repeat 3] [--target 0.5] [--generated 2] [--parts NAME …]

One round of Algorithm 1: two trials of every component, at half and at one and a half of the target, scored on 64
prefixes of 32 + 64 tokens. Then, as `depth`, one depth of a beam of width 10: ten plans that treat half of the
components, each with every other component treated too, by half of the target. `generate` continues the prefixes with
the trial's model token by token and compares, as anyone would without teacher forcing, on `--generated` trials of the
round, its time scaled to all. `plain` is one forward pass per trial. `fdt` scores FDT alone, so that a known sequence
stops; `kl` needs every position. Results are checked equal.

`products` are the multiply-adds of matrix products that were done, by those that the exact method cannot avoid: for
each trial those of its first changed component and of all that depends on it, at the positions that decide; `floor` is
what plain passes do, by the same. Memory is the peak of a process that only does this, above what Python and its
libraries take.
`random` is a Llama of 12 layers and 63 million random weights, on 4 prefixes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from compressor.commands.run import Run
from compressor.contracts import Plan, Prefixes, Treatment
from compressor.evaluation.evaluator import Evaluator, SequenceValues
from compressor.evaluation.weight_source import make_weights
from compressor.models.components import find_layers
from compressor.settings import SweepMode
from compressor_plugins.pruning.magnitude import Magnitude

from .apart import measure_apart, read_peak
from .runs import MODELS, make_random, open_run

Array = np.ndarray[Any, Any]
METRICS = {"fdt": "fdtm", "kl": "kl"}
PARTS = ("round", "depth", "generate", "memory")
DOWNSTREAM = {
    **dict.fromkeys(["q_proj", "k_proj", "v_proj"], ("o_proj", "gate_proj", "up_proj", "down_proj")),
    "o_proj": ("gate_proj", "up_proj", "down_proj"),
    **dict.fromkeys(["gate_proj", "up_proj"], ("down_proj",)),
    "down_proj": (),
}
"""Matrices of a Llama's layer whose inputs a change of another reaches."""


def list_trials(run: Run, target: float) -> list[Plan]:
    """Two for every component, as Algorithm 1 has them."""
    amounts = (target / 2, min(1.0, target * 3 / 2))
    return [{name: Treatment("magnitude", a)} for name in run.setup.model.components for a in amounts]


def list_depth(run: Run, target: float, width: int = 10) -> list[Plan]:
    """All extensions of `width` plans that differ in one component, as a beam has them; drawn at random."""
    rng, names = np.random.default_rng(0), list(run.setup.model.components)
    common = {*rng.choice(names, len(names) // 2, replace=False).tolist()}
    beam = []
    for _ in range(width):
        out, others = str(rng.choice(sorted(common))), sorted({*names} - common)
        beam.append((common - {out}) | {str(rng.choice(others))})
    plans = dict.fromkeys(frozenset(plan | {name}) for plan in beam for name in names if name not in plan)
    return [dict.fromkeys(sorted(plan), Treatment("magnitude", target / 2)) for plan in plans]


def generate_and_compare(run: Run, trial: Plan) -> list[int]:
    """FDT of a trial as by two generations; the base's is the reference."""
    reference = run.setup.evaluators[Prefixes.SEARCH].reference
    found: list[int] = []
    with run.setup.model.swapped(make_weights(run.setup.trial_weights, trial)):
        for _, batch in reference.batches():
            prefixes = batch[:, : reference.prefix_tokens]
            said = run.setup.model.decode(
                prefixes, reference.continuation_tokens, lambda logits: logits.argmax(-1)
            ).cpu()
            agrees = (said == batch)[:, reference.prefix_tokens :]
            found += agrees.long().cumprod(-1).sum(-1).tolist()
    return found


def count_products(run: Run, leading: Sequence[Array] | None) -> tuple[float, float]:
    """Multiply-adds of a round: those of plain forward passes, and those that no exact method can leave out.

    With `leading` `[trial][sequence]` only positions up to the first divergence are needed. Of attention the half
    counts that a causal mask leaves.
    """
    model, reference = run.setup.model, run.setup.evaluators[Prefixes.SEARCH].reference
    config, layers = model.network.config, find_layers(model.network)[1]
    keep, sequences = reference.continuation_tokens, len(reference.tokens)
    length = reference.tokens.shape[1] - 1
    sizes = {c.name.rpartition(".")[2]: c.parameters for c in model.components.values() if c.layer == 0}

    def count(weights: int, attentions: int, said: Array) -> float:
        positions = length - keep + said
        attended = attentions * config.hidden_size * positions**2
        return float((weights * positions + attended + config.vocab_size * config.hidden_size * said).sum())

    plain = needed = 0.0
    whole = np.full(sequences, keep)
    for number, name in enumerate(name for name in model.components for _ in range(2)):
        leaf, layer = name.rpartition(".")[2], model.components[name].layer
        assert layer is not None
        behind = len(layers) - layer - 1
        weights = sizes[leaf] + sum(sizes[part] for part in DOWNSTREAM[leaf]) + behind * sum(sizes.values())
        said = whole if leading is None else np.minimum(keep, leading[number] + 1)
        needed += count(weights, behind + (leaf in ("q_proj", "k_proj", "v_proj")), said)
        plain += count(len(layers) * sum(sizes.values()), len(layers), whole)
    return plain, needed


def count_done(work: Callable[[], object]) -> float:
    """Multiply-adds of matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def time_once(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def check_equal(one: list[SequenceValues], other: list[SequenceValues]) -> bool:
    return all(np.array_equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def score(evaluator: Evaluator, mode: SweepMode, trials: list[Plan], metric: str) -> list[SequenceValues]:
    evaluator.mode = mode
    return evaluator.score_all(trials, [metric])


def measure_round(run: Run, repeat: int, target: float) -> dict[str, Any]:
    """Seconds, ratios and arithmetic of one round; ratios are medians over repetitions of both, one after the other."""
    evaluator, trials = run.setup.evaluators[Prefixes.SEARCH], list_trials(run, target)
    row: dict[str, Any] = {"trials": len(trials)}
    for label, metric in METRICS.items():
        pairs, found, expected = compare_modes(evaluator, trials, metric, repeat)
        row |= {
            f"plain s, {label}": statistics.median(plain for plain, _ in pairs),
            f"engine s, {label}": statistics.median(exact for _, exact in pairs),
            f"plain / engine, {label}": statistics.median(plain / exact for plain, exact in pairs),
            f"equal, {label}": check_equal(found, expected),
        }
        leading = [statistics_["fdtm"][:, 0] for statistics_ in found] if metric == "fdtm" else None
        done = count_done(partial(score, evaluator, SweepMode.exact, trials, metric))
        without, needed = count_products(run, leading)
        row |= {f"floor, {label}": without / needed, f"products, {label}": done / needed}
    return row


def measure_depth(run: Run, repeat: int, target: float) -> dict[str, Any]:
    """The same ratios for one depth of a beam."""
    deep = list_depth(run, target)
    row: dict[str, Any] = {"trials, depth": len(deep)}
    for label, metric in METRICS.items():
        pairs, found, expected = compare_modes(run.setup.evaluators[Prefixes.SEARCH], deep, metric, repeat)
        row[f"plain / engine, depth, {label}"] = statistics.median(plain / exact for plain, exact in pairs)
        row[f"equal, depth, {label}"] = check_equal(found, expected)
    return row


def measure_generation(run: Run, trials: int, target: float) -> dict[str, Any]:
    """Seconds that generating would take for a round, from so many of its trials, by what the engine takes."""
    evaluator, every = run.setup.evaluators[Prefixes.SEARCH], list_trials(run, target)
    chosen = every[:: max(1, len(every) // trials)][:trials]
    seconds, said = time_once(lambda: [generate_and_compare(run, trial) for trial in chosen])
    scored = score(evaluator, SweepMode.plain, chosen, "fdtm")
    engine, _ = time_once(partial(score, evaluator, SweepMode.exact, every, "fdtm"))
    return {
        "generate s": seconds / len(chosen) * len(every),
        "generate / engine": seconds / len(chosen) * len(every) / engine,
        "equal, generate": all(a == b["fdtm"][:, 0].tolist() for a, b in zip(said, scored, strict=True)),
    }


def compare_modes(
    evaluator: Evaluator, trials: list[Plan], metric: str, repeat: int
) -> tuple[list[tuple[float, float]], list[SequenceValues], list[SequenceValues]]:
    """Seconds of plain passes and of the engine, each time one after the other, and what both found."""
    score(evaluator, SweepMode.exact, trials[:2], metric)  # the proof of the replay, once
    pairs = []
    for _ in range(repeat):
        plain, expected = time_once(partial(score, evaluator, SweepMode.plain, trials, metric))
        exact, found = time_once(partial(score, evaluator, SweepMode.exact, trials, metric))
        pairs.append((plain, exact))
    return pairs, found, expected


def measure_model(
    model: str, prefixes: int, repeat: int, target: float, generated: int, parts: Sequence[str]
) -> dict[str, Any]:
    """What was asked for, in this process."""
    row: dict[str, Any] = {}
    with open_run(model, [Magnitude()], list(METRICS.values()), prefixes=prefixes, proof_prefixes=1) as run:
        if "round" in parts:
            row |= measure_round(run, repeat, target)
        if "depth" in parts:
            row |= measure_depth(run, repeat, target)
        if "generate" in parts:
            row |= measure_generation(run, generated, target)
    return row


def measure_memory(model: str, prefixes: int, target: float, metric: str, mode: str) -> float:
    """Peak MiB of opening a model and scoring, in this process, above the libraries."""
    libraries = read_peak()
    with open_run(model, [Magnitude()], [metric], prefixes=prefixes, proof_prefixes=1) as run:
        score(run.setup.evaluators[Prefixes.SEARCH], SweepMode(mode), list_trials(run, target), metric)
    return read_peak() - libraries


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*MODELS, "random"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--generated", type=int, default=2)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            model, prefixes = name, 64
            if name == "random":
                model, prefixes = str(Path(folder) / name), 4
                make_random(model, 12, 640)
            how = (options.repeat, options.target, options.generated, options.parts)
            row = measure_apart(measure_model, model, prefixes, *how)
            for label, metric in METRICS.items() if "memory" in options.parts else ():
                peaks = [
                    measure_apart(measure_memory, model, prefixes, options.target, metric, mode)
                    for mode in ("plain", "exact")
                ]
                row |= {f"plain MiB, {label}": peaks[0], f"engine / plain MiB, {label}": peaks[1] / peaks[0]}
            yield {"model": name, **row}
