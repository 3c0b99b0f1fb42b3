"""Which allocation keeps the text: searches at equal size, scored on prefixes that they never saw, and their cost.

    python -m tests.benchmarks allocation [--models …] [--budgets …] [--seeds 0 1 2 3 4] [--proof 256]
        [--keep FOLDER [--only-kept]] [--page docs/allocation.md]

Pruning by magnitude to 20, 35 and 50 %, and round to nearest at 2 to 8 bits to a mean of 3.25 bits (groups of 64) and
4.5 bits (groups of 32), scales counted. No training. Searches decide on 64 prefixes of 32 + 64 tokens sampled from the
base (per row on 256); measured singles try eleven amounts of each component, others 21. Differences are paired by
prefix against Algorithm 1 by mean FDT when pruning, and against uniform widths otherwise; all seeds together. Cost is
in forward passes over 64 prefixes. `--keep` saves what was measured, and goes on from there, or with `--only-kept`
measures nothing; `--page` writes the tables, of seeds that all methods have.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from compressor.commands.run import Run
from compressor.contracts import (
    EstimateRequest,
    Plan,
    Prefixes,
    Request,
    ScoreRequest,
    SizeRequest,
    Treatment,
    ValuesRequest,
)
from compressor.evaluation.bootstrap import compare_paired, summarize
from compressor.evaluation.evaluator import Evaluator, SequenceValues
from compressor.plugins import installed
from compressor_plugins.schedules.budget import continuous

from .allocation_methods import BUDGETS, GROUPS, PREFIXES, PRUNING, Group, Method
from .allocation_page import SHOWN, render_page
from .heuristics import charge_options
from .keeping import Keep
from .runs import MODELS, Undecided, decide, open_run

METRICS = ("fdtm", "sdtm", "kl", "perplexity", "margin_noise")


@dataclass
class Measured:
    """Proof values of one plan, and what its search cost."""

    values: SequenceValues
    passes: float


Key = tuple[str, str, str, int]
"""Model, budget, method, seed."""


class Remembering(Undecided):
    """Remembers what was measured: trials of single components are the same for several schedules and budgets.

    `total` is the cost in passes over 64 prefixes.
    """

    def __init__(self, run: Run, method: Method, remembered: dict[str, tuple[Any, float]]) -> None:
        super().__init__(run.session)
        self.run, self.method, self.remembered, self.total = run, method, remembered, 0.0

    def score(self, request: ScoreRequest) -> Any:  # noqa: ANN401 - as the session
        return self.remember(request)

    def values(self, request: ValuesRequest) -> Any:  # noqa: ANN401 - as the session
        return self.remember(request)

    def estimate(self, request: EstimateRequest) -> Any:  # noqa: ANN401 - as the session
        if request.measured:
            return self.remember(request)
        self.session.ledger.passes = 0.0
        if self.method.heuristic:
            answer = charge_options(self.run, request, self.method.heuristic)
            self.session.ledger.spend(4, request.start, request.stop)
        else:
            answer = self.session.estimate(request)
        self.charge(self.session.ledger.passes)
        return answer

    def remember(self, request: Request[Any]) -> Any:  # noqa: ANN401 - as the session
        key = repr((request, self.session.ledger.prefixes))
        if key not in self.remembered:
            self.session.ledger.passes = 0.0
            self.remembered[key] = request.ask(self.session), self.session.ledger.passes
        answer, passes = self.remembered[key]
        self.charge(passes)
        return answer

    def charge(self, passes: float) -> None:
        self.total += passes * self.session.ledger.prefixes / PREFIXES


def find_plan(run: Run, method: Method, budget: float, remembered: dict[str, tuple[Any, float]]) -> tuple[Plan, float]:
    """The plan of a schedule's only round, and its cost; nothing is put on the model."""
    remembering = Remembering(run, method, remembered)
    return decide(remembering, method.make(budget)).plan, remembering.total


def limit_prefixes(run: Run, whole: Evaluator, prefixes: int) -> None:
    """Let searches see only the first so many of the search prefixes of `whole`."""
    reference = whole.reference
    assert reference.hidden is not None
    first = replace(reference, tokens=reference.tokens[:prefixes], hidden=reference.hidden[:prefixes], runners={})
    run.setup.evaluators[Prefixes.SEARCH] = replace(whole, reference=first)
    run.session.ledger.prefixes = prefixes
    run.session.problem = replace(run.session.problem, prefixes=prefixes)


def measure_group(group: Group, model: str, seed: int, proof: int, wanted: set[Key]) -> Iterator[tuple[Key, Measured]]:
    """What is wanted of every method on every budget of a group."""
    if not any((model, text, name, seed) in wanted for text in group.budgets for name in group.methods):
        return
    prefixes = max(method.prefixes for method in group.methods.values())
    with open_run(model, [group.compressor], METRICS, seed=seed, prefixes=prefixes, proof_prefixes=proof) as run:
        whole = run.setup.evaluators[Prefixes.SEARCH]
        remembered: dict[str, tuple[Any, float]] = {}
        for (text, budget), (name, method) in itertools.product(group.budgets.items(), group.methods.items()):
            if (model, text, name, seed) not in wanted:
                continue
            limit_prefixes(run, whole, method.prefixes)
            with patch.object(continuous, "LEVELS", np.arange(method.amounts) / (method.amounts - 1)):
                plan, passes = find_plan(run, method, adapt_budget(run, budget), remembered)
            (values,) = run.setup.evaluators[Prefixes.PROOF].score_all([plan])
            yield (model, text, name, seed), Measured(values, passes)


def adapt_budget(run: Run, budget: float) -> float:
    """Bits below those that plain 3 or 4 bits take here, with shorter last groups, are raised to them."""
    if budget <= 1:
        return budget
    width = int(budget)
    plan = {c.name: Treatment("rtn", 1 - width / c.stored_bits) for c in run.setup.model.components.values()}
    sizes = run.session.sizes(SizeRequest({name: [treatment] for name, treatment in plan.items()}))
    parameters = sum(component.parameters for component in run.setup.model.components.values())
    return max(budget, sum(bits for (bits,) in sizes.values()) / parameters)


def describe_rows(found: Mapping[Key, Measured]) -> Iterator[dict[str, Any]]:
    """One row per model, budget and method: value and interval of each metric, and the paired difference."""
    metrics = {name: installed().metrics[name]() for name in SHOWN.values()}
    for model, text in dict.fromkeys((model, text) for model, text, _, _ in found):
        baseline = next(group.baseline for group in GROUPS if text in group.budgets)
        for method in dict.fromkeys(name for m, t, name, _ in found if (m, t) == (model, text)):
            seeds = [seed for m, t, name, seed in found if (m, t, name) == (model, text, method)]
            row: dict[str, Any] = {"model": model, "budget": text, "method": method, "seeds": len(seeds)}
            row["passes"] = float(np.mean([found[model, text, method, seed].passes for seed in seeds]))
            for name, metric in metrics.items():
                rows = np.concatenate([found[model, text, method, seed].values[name] for seed in seeds])
                score = summarize(metric, rows)
                row[name] = [score.mean, score.low, score.high]
                others = [found.get((model, text, baseline, seed)) for seed in seeds]
                if method != baseline and all(others):
                    other = np.concatenate([entry.values[name] for entry in others if entry])
                    row[f"{name} − {baseline}"] = list(compare_paired(metric, rows, other))
            yield row


def choose_seeds(found: Mapping[Key, Measured]) -> dict[Key, Measured]:
    """What belongs to seeds on which every method of a case was measured, by model and budget."""
    models, seeds = dict.fromkeys(key[0] for key in found), sorted({key[3] for key in found})
    chosen: dict[Key, Measured] = {}
    for model, group in itertools.product(models, GROUPS):
        for text in group.budgets:
            cases = [[(model, text, method, seed) for method in group.methods] for seed in seeds]
            whole = [key for case in cases if all(key in found for key in case) for key in case]
            chosen |= {key: found[key] for key in whole}
    return chosen


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--methods", nargs="*", default=list(PRUNING), choices=list(PRUNING))
    parser.add_argument("--budgets", nargs="*", default=BUDGETS, choices=BUDGETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--proof", type=int, default=256)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only-kept", action="store_true")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(arguments)
    keep = Keep(options.keep)
    keys: list[Key] = []
    for seed, model, group in itertools.product(options.seeds, options.models, GROUPS):
        budgets = [text for text in group.budgets if text in options.budgets]
        methods = [name for name in options.methods if name in group.methods]
        every = list(itertools.product([model], budgets, methods, [seed]))
        keys += every
        wanted = set() if options.only_kept else {key for key in every if key not in keep}
        for key, measured in measure_group(group, model, seed, options.proof, wanted):
            keep[key] = measured
            print(key, round(measured.passes, 1), measured.values["kl"].mean(), file=sys.stderr, flush=True)
    found: dict[Key, Measured] = {key: keep[key] for key in keys if key in keep}
    if options.page:
        options.page.write_text(render_page(list(describe_rows(choose_seeds(found)))), encoding="utf-8")
    yield from describe_rows(found)
