"""Which ranker chooses best what to quantize, at equal count of quantized components.

    python -m tests.benchmarks rankers [--models NAME …] [--seeds 0 1 2 3 4] [--order greedy] [--keep FOLDER]

AbsMax int8 with a scale per matrix and per row, and GPTQ int4 (groups of 32, inputs of the base). One component more
at a time, the best by the ranker on 64 prefixes of 32 + 64 tokens: the paper's beam with a width of 1 (`greedy`), or in
the order of what each does alone (`single`). PPL is of as many tokens, sampled from the base, DPPL of the base's own
continuations. `one pass` sorts by estimates of a backward pass, `random` by lot. What a ranker has chosen when 10, 25,
50 and 75 % of the components are quantized is scored on 128 fresh prefixes, and as much fresh text for PPL. Differences
are to FDT75, paired by prefix, all seeds together. `seconds` are of the search, by the process's clock; the orders of
what each does alone come from the same trials, scored by every metric at once.
"""

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compressor.commands.run import Run
from compressor.contracts import (
    Compressor,
    EstimateRequest,
    Prefixes,
    Score,
    ScoreRequest,
    TextWindows,
    Treatment,
)
from compressor.data.texts import make_windows
from compressor.evaluation.evaluator import SequenceValues
from compressor.plugins import installed
from compressor.sensitivity.shrinkage import steady_changes
from compressor.settings import DataSettings
from compressor_plugins.metrics.perplexity import Perplexity
from compressor_plugins.quantization.gptq import Gptq
from compressor_plugins.quantization.int8 import Granularity, Int8
from compressor_plugins.schedules.beam.beam import Beam
from compressor_plugins.schedules.targets import Statistic

from .keeping import Keep
from .runs import MODELS, Undecided, decide, open_run
from .scores import METRICS, compare, count_verdicts, describe

COUNTS = (0.1, 0.25, 0.5, 0.75)
"""Shares of the components."""
COMPRESSORS: Mapping[str, tuple[Compressor, int]] = {
    "int8 per tensor": (Int8(granularity=Granularity.tensor), 8),
    "int8 per row": (Int8(), 8),
    "gptq int4": (Gptq(group=32), 4),
}
"""With the bits that they leave."""
SCORED = {
    "FDT75": ("fdtm", Statistic.p75),
    "FDT": ("fdtm", Statistic.mean),
    "PPL": ("perplexity", Statistic.mean),
    "DPPL": ("divergent_perplexity", Statistic.mean),
    "KL": ("kl", Statistic.mean),
    "expected FDT": ("expected_fdtm", Statistic.mean),
}
ESTIMATED = {"KL, one pass": "kl", "σ², one pass": "margin_noise"}
RANKERS = (*SCORED, *ESTIMATED, "random")
BASELINE = "FDT75"
ORDERS = ("greedy", "single")
FRESH_TEXT = 1_000
"""Added to the seed of the text that PPL is proven on."""


@dataclass
class Chosen:
    """By share of components what they do on fresh prefixes, and which they are; what the search took."""

    seconds: float
    order: list[str]
    values: dict[float, SequenceValues] = field(default_factory=dict)


Singles = Mapping[str, Mapping[str, Score]]
"""Component -> metric -> what its treatment alone does."""


def rank(run: Run, treatments: Mapping[str, Treatment], ranker: str, singles: Singles | None, count: int) -> list[str]:
    """The components in the order in which they are quantized, `count` of them at least; greedily without `singles`."""
    if ranker == "random":
        return [str(name) for name in np.random.default_rng(run.settings.seed).permutation(list(treatments))]
    if ranker in ESTIMATED:
        options = {name: [treatment] for name, treatment in treatments.items()}
        changes = steady_changes(run.session.estimate(EstimateRequest(options, ESTIMATED[ranker])))
        return sorted(treatments, key=lambda name: float(changes[name].mean()))
    metric, statistic = SCORED[ranker]
    if singles is None:
        return search_greedily(run, Beam(width=1, ranker=metric, statistic=statistic, count=count))
    sign = run.setup.metrics[metric].better.sign
    return sorted(singles, key=lambda name: -sign * singles[name][metric].statistic(statistic.value))


def measure_singles(run: Run, treatments: Mapping[str, Treatment], rankers: Iterable[str]) -> Singles:
    """What each treatment does alone, by the metrics of all these rankers at once."""
    metrics = list(dict.fromkeys(SCORED[ranker][0] for ranker in rankers))
    scores = run.session.score(ScoreRequest([{name: t} for name, t in treatments.items()], metrics))
    return dict(zip(treatments, scores, strict=True))


def search_greedily(run: Run, beam: Beam) -> list[str]:
    """The components in the order in which a beam of width 1 takes them."""
    order: list[str] = []
    for waypoint in decide(Undecided(run.session), beam).curve:
        order += [name for name in waypoint.plan if name not in order]
    return order


@contextmanager
def open_ranking(model: str, compressor: Compressor, seed: int, prefixes: int, proof: int) -> Iterator[Run]:
    """A run with all that rankers read; PPL on fresh prefixes is of text that no search has read."""
    names = dict.fromkeys([*METRICS, *(metric for metric, _ in SCORED.values()), *ESTIMATED.values()])
    metrics = {name: installed().metrics[name]() for name in names}
    length = DataSettings().prefix_tokens + DataSettings().continuation_tokens
    metrics["perplexity"] = Perplexity(tokens=prefixes * length)
    with open_run(model, [compressor], metrics, seed=seed, prefixes=prefixes, proof_prefixes=proof) as run:
        fresh = replace(run.settings.data, seed=seed + FRESH_TEXT)
        windows = make_windows(run.setup.model, TextWindows(tokens=proof * length), fresh, None)
        run.setup.evaluators[Prefixes.PROOF] = replace(
            run.setup.evaluators[Prefixes.PROOF], windows={"perplexity": windows}
        )
        run.session.calibrator.prepare([compressor.name])
        yield run


def measure_seed(model: str, kind: str, seed: int, options: argparse.Namespace, keep: Keep) -> dict[str, Chosen]:
    """By ranker; what was kept is not measured again."""
    setting = (model, kind, seed, options.order, options.prefixes, options.proof)
    missing = [ranker for ranker in options.rankers if (*setting, ranker) not in keep]
    if missing:
        compressor, bits = COMPRESSORS[kind]
        with open_ranking(model, compressor, seed, options.prefixes, options.proof) as run:
            treatments = {
                component.name: Treatment(compressor.name, 1 - bits / component.stored_bits)
                for component in run.setup.model.components.values()
            }
            began = time.process_time()
            singles = measure_singles(run, treatments, SCORED) if options.order == "single" else None
            seconds = time.process_time() - began
            for ranker in missing:
                chosen = measure_ranker(run, treatments, ranker, singles)
                chosen.seconds += seconds if ranker in SCORED else 0.0
                keep[*setting, ranker] = chosen
    return {ranker: keep[*setting, ranker] for ranker in options.rankers}


def measure_ranker(run: Run, treatments: Mapping[str, Treatment], ranker: str, singles: Singles | None) -> Chosen:
    counts = [max(1, round(share * len(treatments))) for share in COUNTS]
    began = time.process_time()
    names = rank(run, treatments, ranker, singles, counts[-1])
    chosen = Chosen(time.process_time() - began, names)
    trials = [{name: treatments[name] for name in names[:count]} for count in counts]
    found = run.setup.evaluators[Prefixes.PROOF].score_all(trials, METRICS)
    chosen.values = dict(zip(COUNTS, found, strict=True))
    return chosen


def describe_rows(seeds: list[dict[str, Chosen]]) -> Iterator[dict[str, Any]]:
    """A row for each count and ranker, over all seeds."""
    for share, ranker in itertools.product(COUNTS, seeds[0]):
        found = [answers[ranker].values[share] for answers in seeds]
        seconds = float(np.mean([answers[ranker].seconds for answers in seeds]))
        row: dict[str, Any] = {"share": share, "ranker": ranker, "seeds": len(seeds), "seconds": seconds}
        row |= describe(found)
        if ranker != BASELINE and BASELINE in seeds[0]:
            cells = compare(found, [answers[BASELINE].values[share] for answers in seeds])
            row |= {f"{name} − {BASELINE}": cell for name, cell in cells.items()}
        yield row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--kinds", nargs="*", default=list(COMPRESSORS), choices=list(COMPRESSORS))
    parser.add_argument("--rankers", nargs="*", default=list(RANKERS), choices=RANKERS)
    parser.add_argument("--order", default="greedy", choices=ORDERS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--prefixes", type=int, default=64)
    parser.add_argument("--proof", type=int, default=128)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    keep, rows = Keep(options.keep), []
    for model, kind in itertools.product(options.models, options.kinds):
        for row in describe_rows([measure_seed(model, kind, seed, options, keep) for seed in options.seeds]):
            rows.append(row)
            yield {"model": model, "kind": kind, **row}
    yield from count_verdicts(rows, "ranker", BASELINE)
