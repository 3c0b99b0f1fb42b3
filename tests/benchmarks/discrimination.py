"""Which metric tells the removal of a few lowest weights of one component from the removal of random ones?

    python -m tests.benchmarks discrimination [--models NAME …] [--shares 0.001] [--prefixes 8 64]
                                              [--trials 1000 100] [--text FILE] [--keep FOLDER]

The discrimination test of Deiseroth et al., Divergent Token Metrics, NAACL 2024. A trial draws a component and a set of
prefixes. The share of its weights is set to zero once by `magnitude` and once by `random`, with a seed of its own. Both
are scored on the same prefixes, and each metric judges which of them is worse. It is right if that is `random`; equal
values are a tie, which counts one half in `accuracy`. Intervals are Wilson's, at 95 %. The share is rounded to whole
weights, at least one: `weights` are those of the smallest and the largest component.

`--prefixes` are the sizes of the sets, `--trials` their numbers of trials. Sets are disjoint parts of the `--pool`
prefixes of 32 + 64 tokens, which the base sampled. PPL is of as many windows of 96 tokens as there are prefixes: of
`--text`, or of sequences sampled from the base. `lowest` is the mean of the metric over trials where the lowest weights
are pruned; where random ones are, it is worse by `worse by` on average, with a standard deviation of `spread`.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.commands.run import Run
from compressor.compression.apply import Treatments, make_replacement
from compressor.contracts import Metric, Plan, Prefixes, Treatment
from compressor.data.texts import Windows
from compressor.evaluation.evaluator import Evaluator, SequenceValues
from compressor.models import Model, Replacement
from compressor.plugins import installed
from compressor.settings import DataSettings
from compressor_plugins.metrics.perplexity import Perplexity
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.random import Random

from .keeping import Keep
from .runs import MODELS, open_run

METRICS = ("fdtm", "sdtm", "expected_fdtm", "margin_noise", "kl", "divergent_perplexity", "perplexity")
P75 = "FDT75"
SEED = "seed"
"""An option of treatments that only `SeededWeights` reads."""
NORMAL = 1.959963984540054
"""97.5 % of a normal distribution lie below it."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SeededWeights:
    """The weights of trials, where a treatment may have a seed of its own."""

    model: Model
    treatments: Treatments

    def make(self, component: str, treatment: Treatment) -> Replacement:
        seeded = replace(self.treatments, seed=treatment.options.get(SEED, 0))
        plain = Treatment(treatment.compressor, treatment.amount)
        return make_replacement(seeded.compress_one(self.model, component, plain))


@dataclass(frozen=True)
class Trial:
    """A component, the number of its set of prefixes, and the seed of the random weights."""

    component: str
    part: int
    seed: int


@dataclass
class Judged:
    """By judge, `[trial]`: its value where the lowest weights are pruned, and where random ones are."""

    lowest: dict[str, Array]
    random: dict[str, Array]
    weights: tuple[int, int]


def draw_trials(components: list[str], parts: int, count: int, seed: int) -> list[Trial]:
    """So many trials; every set of prefixes has as many of them as any other, or one more."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(components), count)
    return [Trial(components[index], number % parts, number) for number, index in enumerate(chosen)]


def count_weights(parameters: int, share: float) -> int:
    return max(1, round(share * parameters))


def judge(metrics: Mapping[str, Metric], values: SequenceValues) -> dict[str, float]:
    """What each metric says of one pruned model; FDT says it twice, by its mean and by its 75th percentile."""
    found = {}
    for name, metric in metrics.items():
        found[name] = float(metric.aggregate(values[name]))
        if name == "fdtm":
            found[P75] = float(np.percentile(values[name][:, 0], 75))
    return found


def choose_windows(windows: Windows, start: int, stop: int) -> Windows:
    """Windows from `start` to `stop`; after the last one comes the first one again."""
    rows = torch.arange(start, stop) % len(windows.tokens)
    return replace(windows, tokens=windows.tokens[rows], counted=windows.counted[rows])


def score_part(evaluator: Evaluator, part: int, prefixes: int, plans: list[Plan]) -> list[dict[str, float]]:
    """What the metrics say of each plan on one set of prefixes, and on as many windows of text."""
    start, stop = part * prefixes, (part + 1) * prefixes
    windows = {name: choose_windows(whole, start, stop) for name, whole in evaluator.windows.items()}
    found = replace(evaluator, windows=windows).score_all(plans, None, start, stop)
    return [judge(evaluator.metrics, values) for values in found]


def measure_trials(run: Run, share: float, prefixes: int, trials: list[Trial]) -> Judged:
    """Both arms of all trials; the lowest weights of a component are scored once on each set of prefixes."""
    components = run.setup.model.components
    counts = {name: count_weights(c.parameters, share) for name, c in components.items()}
    amounts = {name: counts[name] / c.parameters for name, c in components.items()}
    weights = SeededWeights(run.setup.model, run.session.treatments)
    evaluator = replace(run.setup.evaluators[Prefixes.SEARCH], weight_source=weights, engine=None)
    lowest: dict[int, dict[str, float]] = {}
    random: dict[int, dict[str, float]] = {}
    for part in sorted({trial.part for trial in trials}):
        here = [trial for trial in trials if trial.part == part]
        names = list(dict.fromkeys(trial.component for trial in here))
        plans: list[Plan] = [{name: Treatment(Magnitude.name, amounts[name])} for name in names]
        plans += [
            {trial.component: Treatment(Random.name, amounts[trial.component], {SEED: trial.seed})} for trial in here
        ]
        found = score_part(evaluator, part, prefixes, plans)
        by_name = dict(zip(names, found, strict=False))
        for trial, values in zip(here, found[len(names) :], strict=True):
            lowest[trial.seed], random[trial.seed] = by_name[trial.component], values

    def collect(arm: dict[int, dict[str, float]]) -> dict[str, Array]:
        return {name: np.array([arm[trial.seed][name] for trial in trials]) for name in arm[0]}

    return Judged(collect(lowest), collect(random), (min(counts.values()), max(counts.values())))


def bound_share(share: float, count: int) -> list[float]:
    """A share of `count` trials with its 95 % interval by Wilson, Probable inference, JASA 1927."""
    square = NORMAL**2 / count
    middle = (share + square / 2) / (1 + square)
    half = NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return [share, max(0.0, middle - half), min(1.0, middle + half)]


def describe(judged: Judged) -> Iterator[dict[str, Any]]:
    """A row for each metric."""
    for name, random in judged.random.items():
        lowest = judged.lowest[name]
        worse = -installed().metrics["fdtm" if name == P75 else name].better.sign * (random - lowest)
        right, tied = float(np.mean(worse > 0)), float(np.mean(worse == 0))
        yield {
            "metric": name,
            "right": right,
            "tied": tied,
            "wrong": float(np.mean(worse < 0)),
            "accuracy": bound_share(right + tied / 2, len(worse)),
            "lowest": float(lowest.mean()),
            "worse by": float(worse.mean()),
            "spread": float(worse.std()),
        }


def measure_model(model: str, options: argparse.Namespace, keep: Keep) -> Iterator[dict[str, Any]]:
    """A row for each share, number of prefixes and metric; what was kept is not measured again."""
    text = Path(options.text).name if options.text else "sampled"
    cases = list(itertools.product(options.shares, zip(options.prefixes, options.trials, strict=True)))
    keys = {case: (Path(model).name, text, options.seed, options.pool, case[0], *case[1]) for case in cases}
    missing = [case for case in cases if keys[case] not in keep]
    if missing:
        data = DataSettings(prefixes=options.pool)
        length = data.prefix_tokens + data.continuation_tokens
        metrics = {name: installed().metrics[name]() for name in METRICS}
        metrics["perplexity"] = Perplexity(path=options.text, window=length, tokens=options.pool * length)
        compressors = [Magnitude(), Random()]
        with open_run(model, compressors, metrics, seed=options.seed, data=data, proof_prefixes=1) as run:
            for share, (prefixes, count) in missing:
                names = list(run.setup.model.components)
                trials = draw_trials(names, options.pool // prefixes, count, options.seed)
                keep[keys[share, (prefixes, count)]] = measure_trials(run, share, prefixes, trials)
    for share, (prefixes, count) in cases:
        judged = keep[keys[share, (prefixes, count)]]
        smallest, largest = judged.weights
        setting = {"model": Path(model).name, "pruned": f"{share:.1%}", "weights": f"{smallest}–{largest}"}
        yield from ({**setting, "prefixes": prefixes, "trials": count, **row} for row in describe(judged))


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.001])
    parser.add_argument("--prefixes", nargs="+", type=int, default=[8, 64], help="of one judgement")
    parser.add_argument("--trials", nargs="+", type=int, default=[1000, 100], help="for each number of prefixes")
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--text", help="a file that PPL is measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    if len(options.trials) != len(options.prefixes):
        parser.error(f"--trials must be as many numbers as --prefixes, got {options.trials}; give one for each")
    if max(options.prefixes) > options.pool:
        parser.error(f"--prefixes must be at most --pool, {options.pool}, got {max(options.prefixes)}; lower it")
    keep = Keep(options.keep)
    for model in options.models:
        yield from measure_model(model, options, keep)
