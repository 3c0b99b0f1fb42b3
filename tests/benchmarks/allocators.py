"""`schedule=budget` against the mixed-precision searches of ModelOpt and AutoRound, at equal bytes.

    python -m tests.benchmarks allocators [--environments FOLDER] [--models NAME …] [--seeds 0 1 2 3 4] [--keep FOLDER]

Every matrix of the decoder layers may be int4 (groups of 64), int8 (a scale per row) or 16 bits, under three budgets of
mean bits, scales counted, which nobody exceeds. All searches read the same 64 sequences of 32 + 64 tokens that the base
said; every allocation is applied with `int4` and `int8` of this project and scored on 256 fresh prefixes, FDT75 among
the rest. Seeds are other prefixes. `matrix` lets every matrix have its own format; with `fused` query, key and value
share one, gate and up share one, which is what ModelOpt does by default. Checkpoints are rounded to bfloat16 first, and
everybody computes in float32. Differences are paired by prefix.

`passes` is what a search costs, by a hook in every layer: a forward pass over a token counts 1, a backward pass 2, over
all tokens and layers of the 64 sequences. Those of `budget` hold the pass in which the base's distribution was
remembered, and are a mean over the budgets, for each of which it searches anew; others score once for all budgets.
`deep` is a Llama of 32 layers with random weights: as many matrices as Llama-2-7B has, for the cost alone, on one seed.
Packages of others are looked for in FOLDER/modelopt and FOLDER/auto-round, environments of their own with
`nvidia-modelopt`, `auto-round` and transformers, else in this one; who cannot be had is left out.
"""

import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from compressor.contracts import Prefixes
from compressor.evaluation.evaluator import SequenceValues
from compressor_plugins.schedules.budget.budget import Budget

from .asking import ask_peer
from .keeping import Keep
from .mixed import FORMATS, Case, locate, open_case
from .peers.task import Allocation, counted, read_answer
from .runs import MODELS, Undecided, decide, make_random
from .scores import METRICS, compare, count_verdicts, describe

CORRECTIONS = {"budget": 6, "budget, one pass": 0}
BASELINE = "budget"
PEERS = {"modelopt": "modelopt", "auto-round": "autoround"}
"""Environment -> script."""
NAMES = {"kl_div": "ModelOpt kl_div", "gradient": "ModelOpt gradient", "AutoScheme": "AutoRound AutoScheme"}
GRAINS = ("matrix", "fused")
DEEP = "deep"


@dataclass
class Found:
    """What one method found on one seed: by budget its bits per weight and what it does on fresh prefixes."""

    passes: float
    seconds: float
    version: str = ""
    bits: dict[float, float] = field(default_factory=dict)
    values: dict[float, SequenceValues] = field(default_factory=dict)

    def add(self, case: Case, number: int, allocation: Allocation) -> None:
        """Apply an allocation for the budget of this number, score it on fresh prefixes, undo it."""
        taken = case.task.count(allocation)
        assert taken <= case.task.budgets[number], f"{taken} bits of {case.task.budgets[number]}"
        plan = {component: FORMATS[form] for component, form in allocation.items()}
        (values,) = case.run.setup.evaluators[Prefixes.PROOF].score_all([plan], METRICS)
        budget = case.budgets[number]
        self.bits[budget], self.values[budget] = taken / case.task.parameters, values


def search_here(case: Case) -> dict[str, Found]:
    """All budgets by `schedule=budget`; costs are means over budgets."""
    answers, run = {}, case.run
    names = {treatment.compressor: form for form, treatment in FORMATS.items()}
    for method, corrections in CORRECTIONS.items():
        found = answers[method] = Found(1.0, 0.0)
        for number, budget in enumerate(case.budgets):
            with counted(run.setup.model.network.model.layers) as cost:
                plan = decide(Undecided(run.session), Budget(bits=budget, corrections=corrections)).plan
            found.add(case, number, {name: names[treatment.compressor] for name, treatment in plan.items()})
            found.passes += cost.total / case.one_pass / len(case.budgets)
            found.seconds += cost.seconds / len(case.budgets)
    return answers


def search_there(environment: str, environments: Path | None, case: Case) -> dict[str, Found]:
    """All budgets by the script of a peer; nothing where it cannot be had."""
    data = ask_peer(PEERS[environment], environment, environments, asdict(case.task))
    if data is None:
        return {}
    answer = read_answer(data)
    answers = {}
    for method, allocations in answer.allocations.items():
        cost = answer.costs[method]
        found = answers[NAMES[method]] = Found(cost.total / case.one_pass, cost.seconds, answer.version)
        for number, allocation in enumerate(allocations):
            if allocation is not None:
                found.add(case, number, allocation)
    return answers


def measure_seed(model: str, grain: str, seed: int, options: argparse.Namespace, keep: Keep) -> dict[str, Found]:
    """By method; what was kept is not measured again."""
    setting = (model, grain, seed, options.prefixes, options.proof, *options.bits)
    searches: dict[str, Callable[[Case], dict[str, Found]]] = {"budget": search_here}
    for environment in PEERS:
        searches[environment] = functools.partial(search_there, environment, options.environments)
    missing = [name for name in searches if (*setting, name) not in keep]
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            source = make_deep(scratch) if model == DEEP else model
            with open_case(source, grain == "fused", seed, options.bits, options.prefixes, options.proof) as case:
                for name in missing:
                    if found := searches[name](case):
                        keep[*setting, name] = found
    kept = [keep[*setting, name] for name in searches if (*setting, name) in keep]
    return {method: found for answers in kept for method, found in answers.items()}


def make_deep(folder: str) -> str:
    """`folder`, with a model of 224 small matrices in it."""
    make_random(folder, layers=32, width=64)
    AutoTokenizer.from_pretrained(locate("tiny")).save_pretrained(folder)
    return folder


def describe_rows(seeds: list[dict[str, Found]], budgets: list[float]) -> Iterator[dict[str, Any]]:
    """A row for each budget and method, over all seeds; a seed counts where the method found an allocation."""
    methods = list(dict.fromkeys(method for answers in seeds for method in answers))
    for budget, method in itertools.product(budgets, methods):
        pairs = [(s[method], s[BASELINE]) for s in seeds if method in s and budget in s[method].values]
        found = [one for one, _ in pairs]
        row: dict[str, Any] = {"budget": budget, "method": method, "seeds": len(pairs)}
        if pairs:
            row["version"] = found[0].version
            row["bits"] = sum(one.bits[budget] for one in found) / len(found)
            row["passes"] = sum(one.passes for one in found) / len(found)
            row["seconds"] = sum(one.seconds for one in found) / len(found)
            row |= describe([one.values[budget] for one in found])
            if method != BASELINE:
                bases = [base.values[budget] for _, base in pairs]
                cells = compare([one.values[budget] for one in found], bases)
                row |= {f"{name} − {BASELINE}": cell for name, cell in cells.items()}
        yield row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*MODELS, DEEP])
    parser.add_argument("--grains", nargs="*", default=list(GRAINS), choices=GRAINS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--bits", nargs="*", type=float, default=[4.5, 5.5, 6.5])
    parser.add_argument("--prefixes", type=int, default=64)
    parser.add_argument("--proof", type=int, default=256)
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    keep, rows = Keep(options.keep), []
    for model, grain in itertools.product(options.models, options.grains):
        chosen = options.seeds[:1] if model == DEEP else options.seeds
        seeds = [measure_seed(model, grain, seed, options, keep) for seed in chosen]
        for row in describe_rows(seeds, options.bits):
            rows.append(row)
            yield {"model": model, "grain": grain, **row}
    yield from count_verdicts(rows, "method", BASELINE)
