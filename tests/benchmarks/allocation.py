"""Which allocation keeps the text: searches at equal size, scored on prefixes that they never saw, and their cost.

    python -m tests.benchmarks allocation [--models …] [--budgets …] [--seeds 0 1 2 3 4] [--proof 256] [--keep FOLDER]

Pruning by magnitude to 20, 35 and 50 %, and round to nearest at 2 to 8 bits to a mean of 3.25 bits (groups of 64) and
4.5 bits (groups of 32), scales counted. No training. Searches decide on 64 prefixes of 32 + 64 tokens sampled from the
base (per row on 256); measured singles try eleven amounts of each component, others 21. Differences are paired by
prefix against Algorithm 1 by mean FDT when pruning, and against uniform widths otherwise; all seeds together. Cost is
in forward passes over 64 prefixes. `--keep` saves what was measured, and goes on from there.
"""

import argparse
import itertools
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from compressor.contracts import (
    Compressor,
    Dialogue,
    EstimateRequest,
    KeepRequest,
    Prefixes,
    Problem,
    Schedule,
    ScoreRequest,
    Search,
    SizeRequest,
)
from compressor.plugins import installed
from compressor.run import Run
from compressor.statistics import compare_paired, summarize
from compressor.sweep import Statistics, Sweep
from compressor.values import Plan, Treatment
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules import amounts
from compressor_plugins.schedules.budget import Budget, EstimateBy, Granularity
from compressor_plugins.schedules.evolution import Evolution
from compressor_plugins.schedules.fdt_allocation import FdtAllocation, Statistic
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.uniform import Uniform

from .heuristics import Heuristic, charge_options
from .runs import MODELS, open_run

METRICS = ("fdtm", "sdtm", "kl", "perplexity", "margin_noise")
SHOWN = ("fdtm", "sdtm", "kl", "perplexity")
PREFIXES = 64


@dataclass(frozen=True)
class Method:
    """A schedule for a budget, on so many prefixes and over so many amounts of each component.

    `heuristic` answers its estimates in place of the backward pass.
    """

    make: Callable[[Any], Schedule]
    prefixes: int = PREFIXES
    heuristic: Heuristic | None = None
    amounts: int = 21


@dataclass
class SameWidth(Schedule):
    """The same integers everywhere, whatever the checkpoint stores."""

    name = "same_width"
    width: int

    def search(self, problem: Problem) -> Search:
        yield KeepRequest({c.name: Treatment("rtn", 1 - self.width / c.stored_bits) for c in problem.components})


PRUNING: dict[str, Method] = {
    "uniform": Method(lambda t: Uniform(targets=[t])),
    "global magnitude": Method(lambda t: GlobalThreshold(targets=[t])),
    "Algorithm 1, p75": Method(lambda t: FdtAllocation(targets=[t], statistic=Statistic.p75)),
    "Algorithm 1, mean": Method(lambda t: FdtAllocation(targets=[t])),
    "gradient magnitude": Method(lambda t: Budget(targets=[t], corrections=0), heuristic=Heuristic.gradient),
    "Hessian trace": Method(lambda t: Budget(targets=[t], corrections=0), heuristic=Heuristic.trace),
    "one pass, KL": Method(lambda t: Budget(targets=[t], corrections=0)),
    "one pass, σ²": Method(lambda t: Budget(targets=[t], corrections=0, objective="margin_noise")),
    "corrected, KL": Method(lambda t: Budget(targets=[t])),
    "corrected, σ²": Method(lambda t: Budget(targets=[t], objective="margin_noise")),
    "per row, one pass": Method(lambda t: Budget(targets=[t], corrections=0, granularity=Granularity.row), 256),
    "per row, corrected": Method(lambda t: Budget(targets=[t], granularity=Granularity.row), 256),
    "measured singles": Method(lambda t: Budget(targets=[t], corrections=0, estimate=EstimateBy.measured), amounts=11),
    "evolution": Method(lambda t: Evolution(targets=[t])),
}
INTEGERS: dict[str, Method] = {
    "uniform": Method(lambda bits: SameWidth(max(width for width in Rtn().bits if width <= bits))),
    "gradient magnitude": Method(lambda bits: Budget(bits=bits, corrections=0), heuristic=Heuristic.gradient),
    "Hessian trace": Method(lambda bits: Budget(bits=bits, corrections=0), heuristic=Heuristic.trace),
    "one pass, KL": Method(lambda bits: Budget(bits=bits, corrections=0)),
    "one pass, σ²": Method(lambda bits: Budget(bits=bits, corrections=0, objective="margin_noise")),
    "corrected, KL": Method(lambda bits: Budget(bits=bits)),
    "corrected, σ²": Method(lambda bits: Budget(bits=bits, objective="margin_noise")),
    "measured singles": Method(lambda bits: Budget(bits=bits, corrections=0, estimate=EstimateBy.measured)),
    "evolution": Method(lambda bits: Evolution(bits=bits)),
}


@dataclass(frozen=True)
class Group:
    """Budgets that share a compressor: the methods and the one that differences are taken to."""

    compressor: Compressor
    methods: Mapping[str, Method]
    baseline: str
    budgets: Mapping[str, float]


GROUPS = (
    Group(Magnitude(), PRUNING, "Algorithm 1, mean", {f"{t:.0%} sparsity": t for t in (0.20, 0.35, 0.50)}),
    Group(Rtn(group=64), INTEGERS, "uniform", {"3.25 bits": 3.25}),
    Group(Rtn(group=32), INTEGERS, "uniform", {"4.5 bits": 4.5}),
)
BUDGETS = [text for group in GROUPS for text in group.budgets]


@dataclass
class Measured:
    """Proof statistics of one plan, and what its search cost."""

    statistics: Statistics
    passes: float


Key = tuple[str, str, str, int]
"""Model, budget, method, seed."""


def find_plan(run: Run, method: Method, budget: float, remembered: dict[str, tuple[Any, float]]) -> tuple[Plan, float]:
    """The plan of a schedule's only round, and its cost in passes over 64 prefixes; nothing is put on the model.

    What was measured is remembered: trials of single components are the same for several schedules and budgets.
    """
    dialogue: Dialogue = run.search.begin(method.make(budget))
    total = 0.0
    while not isinstance(request := dialogue.propose(), KeepRequest):
        assert request is not None
        run.search.passes = 0.0
        measures = isinstance(request, ScoreRequest) or (isinstance(request, EstimateRequest) and request.measured)
        key = repr((request, run.search.prefixes)) if measures else ""
        if key in remembered:
            answer, run.search.passes = remembered[key]
        elif isinstance(request, EstimateRequest) and method.heuristic:
            answer = charge_options(run, request, method.heuristic)
            run.search.spend(4, request.start, request.stop)
        else:
            answer = run.search.answer(request)
        if key:
            remembered[key] = answer, run.search.passes
        total += run.search.passes * run.search.prefixes / PREFIXES
        dialogue.tell(answer)
    return request.plan, total


def limit_prefixes(run: Run, whole: Sweep, prefixes: int) -> None:
    """Let searches see only the first so many of the search prefixes of `whole`."""
    reference = whole.reference
    assert reference.hidden is not None
    first = replace(reference, tokens=reference.tokens[:prefixes], hidden=reference.hidden[:prefixes], runners={})
    run.sweeps[Prefixes.SEARCH] = replace(whole, reference=first)
    run.search.prefixes = prefixes


def measure_group(group: Group, model: str, seed: int, proof: int, wanted: set[Key]) -> Iterator[tuple[Key, Measured]]:
    """What is wanted of every method on every budget of a group."""
    if not any((model, text, name, seed) in wanted for text in group.budgets for name in group.methods):
        return
    prefixes = max(method.prefixes for method in group.methods.values())
    with open_run(model, [group.compressor], METRICS, seed=seed, prefixes=prefixes, proof_prefixes=proof) as run:
        whole = run.sweeps[Prefixes.SEARCH]
        remembered: dict[str, tuple[Any, float]] = {}
        for (text, budget), (name, method) in itertools.product(group.budgets.items(), group.methods.items()):
            if (model, text, name, seed) not in wanted:
                continue
            limit_prefixes(run, whole, method.prefixes)
            with patch.object(amounts, "LEVELS", np.arange(method.amounts) / (method.amounts - 1)):
                plan, passes = find_plan(run, method, adapt_budget(run, budget), remembered)
            (statistics,) = run.sweeps[Prefixes.PROOF].score_all([run.search.make_trial(plan)])
            yield (model, text, name, seed), Measured(statistics, passes)


def adapt_budget(run: Run, budget: float) -> float:
    """Bits below those that plain 3 or 4 bits take here, with shorter last groups, are raised to them."""
    if budget <= 1:
        return budget
    width = int(budget)
    plan = {c.name: Treatment("rtn", 1 - width / c.stored_bits) for c in run.model.components.values()}
    sizes = run.search.answer(SizeRequest({name: [treatment] for name, treatment in plan.items()}))
    parameters = sum(component.parameters for component in run.model.components.values())
    return max(budget, sum(bits for (bits,) in sizes.values()) / parameters)


def describe_rows(found: Mapping[Key, Measured]) -> Iterator[dict[str, Any]]:
    """One row per model, budget and method: value and interval of each metric, and the paired difference."""
    metrics = {name: installed().metrics[name]() for name in SHOWN}
    for model, text in dict.fromkeys((model, text) for model, text, _, _ in found):
        baseline = next(group.baseline for group in GROUPS if text in group.budgets)
        for method in dict.fromkeys(name for m, t, name, _ in found if (m, t) == (model, text)):
            seeds = [seed for m, t, name, seed in found if (m, t, name) == (model, text, method)]
            row: dict[str, Any] = {"model": model, "budget": text, "method": method, "seeds": len(seeds)}
            row["passes"] = float(np.mean([found[model, text, method, seed].passes for seed in seeds]))
            for name, metric in metrics.items():
                rows = np.concatenate([found[model, text, method, seed].statistics[name] for seed in seeds])
                score = summarize(metric, rows)
                row[name] = [score.mean, score.low, score.high]
                others = [found.get((model, text, baseline, seed)) for seed in seeds]
                if method != baseline and all(others):
                    other = np.concatenate([entry.statistics[name] for entry in others if entry])
                    row[f"{name} − {baseline}"] = list(compare_paired(metric, rows, other))
            yield row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--methods", nargs="*", default=list(PRUNING), choices=list(PRUNING))
    parser.add_argument("--budgets", nargs="*", default=BUDGETS, choices=BUDGETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--proof", type=int, default=256)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    found: dict[Key, Measured] = {}
    if options.keep:
        for path in sorted(options.keep.glob("*.pickle")):
            found |= pickle.loads(path.read_bytes())
    for seed, model, group in itertools.product(options.seeds, options.models, GROUPS):
        budgets = [text for text in group.budgets if text in options.budgets]
        every = itertools.product([model], budgets, options.methods, [seed])
        wanted = {key for key in every if key not in found and key[2] in group.methods}
        for key, measured in measure_group(group, model, seed, options.proof, wanted):
            found[key] = measured
            print(key, round(measured.passes, 1), measured.statistics["kl"].mean(), file=sys.stderr, flush=True)
            if options.keep:
                name = "-".join(map(str, key)).replace("%", "").replace(" ", "_").replace(",", "")
                (options.keep / f"{name}.pickle").write_bytes(pickle.dumps({key: measured}))
    yield from describe_rows(found)
