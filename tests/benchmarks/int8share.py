"""The share of parameters that plain int8 takes before FDT75 falls by 10 %, and which components come last.

    python -m tests.benchmarks int8share [--models NAME …] [--tokens 64 256] [--seeds 0 1 2 3 4] [--order greedy]
        [--keep FOLDER]

AbsMax int8, a scale per matrix as in the paper, and per row. Components are taken one by one, in the order of the KL
that each costs alone on 64 prefixes (`single`), or by a beam of width 1 that ranks by the mean FDT (`greedy`; its 75th
percentile is at its largest for most plans, and cannot tell them apart). Plans of some twenty depths are then scored on
fresh prefixes. Of the base against itself FDT75 is the M tokens of a continuation, so FDT75 has fallen by 10 % where it
is below 0.9 M; `share` is that of the parameters at the last depth before that, with the depths at which the 95 %
interval of FDT75 begins and ceases to hold 0.9 M. A larger M asks for more; `share, mean` asks the same of the mean.

The second kind of row is about outliers: `kurtosis` of a component's weights (3 is normal), `max/std` of |w|, `inputs`
the largest |x| of an input feature by the median one. Said are the means over the last fifth of the components and over
the others, and Spearman's correlation with the place in the order, all seeds together.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kurtosis, spearmanr

from compressor.commands.run import Run
from compressor.compression.calibration import gather
from compressor.contracts import Prefixes, Treatment
from compressor_plugins.quantization.int8 import Granularity, Int8

from .keeping import Keep
from .rankers import ORDERS, measure_singles, rank
from .runs import MODELS, open_run

DEPTHS = 21
"""At most so many plans are scored."""
LEAST = 0.9
LAST = 0.2
"""Share of the components that are said to come last."""
OUTLIERS = ("kurtosis", "max/std", "inputs")


@dataclass
class Ordered:
    """The `order` of components, their parameters, FDT at `depths` `[depth, sequence]`, and outliers by name."""

    order: list[str]
    depths: list[int]
    parameters: dict[str, int]
    leading: NDArray[np.float64]
    outliers: dict[str, dict[str, float]]


def measure_order(run: Run, order: str) -> Ordered:
    components = run.setup.model.components
    treated = {name: Treatment("int8", 1 - 8 / component.stored_bits) for name, component in components.items()}
    singles = None if order == "greedy" else measure_singles(run, treated, ["KL"])
    names = rank(run, treated, "FDT" if singles is None else "KL", singles, len(treated))
    depths = sorted({round(depth) for depth in np.linspace(1, len(names), min(len(names), DEPTHS))})
    trials = [{name: treated[name] for name in names[:depth]} for depth in depths]
    found = run.setup.evaluators[Prefixes.PROOF].score_all(trials, ["fdtm"])
    parameters = {name: component.parameters for name, component in components.items()}
    leading = np.stack([values["fdtm"][:, 0] for values in found])
    return Ordered(names, depths, parameters, leading, measure_outliers(run))


def measure_outliers(run: Run) -> dict[str, dict[str, float]]:
    """Of every component's weights, and of its inputs on the search prefixes."""
    model, found = run.setup.model, {}
    inputs = gather(model, run.setup.evaluators[Prefixes.SEARCH].reference, list(model.components), ["absmax"])
    for name in model.components:
        weight = model.read(name).double().numpy().ravel()
        read = inputs.read(name, ["absmax"])
        assert read is not None
        largest = read["absmax"].double().numpy()
        found[name] = {
            "kurtosis": float(kurtosis(weight, fisher=False)),
            "max/std": float(np.abs(weight).max() / weight.std()),
            "inputs": float(largest.max() / np.median(largest)),
        }
    return found


def describe_shares(seeds: list[Ordered], tokens: int) -> Iterator[dict[str, Any]]:
    """A row for each seed, and one for all of them, whose depths are those of every seed together."""
    for name, chosen in [*((str(n), [one]) for n, one in enumerate(seeds)), ("all", seeds)]:
        leading = np.concatenate([one.leading for one in chosen], axis=1)
        shares = np.mean([cumulate(one) for one in chosen], axis=0)
        percentiles = np.percentile(leading, 75, axis=1)
        draws = np.random.default_rng(0).integers(0, leading.shape[1], size=(1000, leading.shape[1]))
        low, high = np.stack([np.percentile(np.percentile(row[draws], 75, axis=1), (2.5, 97.5)) for row in leading]).T
        limit = LEAST * tokens
        found = [float(find_share(values, shares, limit)) for values in (percentiles, low, high)]
        yield {
            "seed": name,
            "share": found,
            "share, mean": float(find_share(leading.mean(axis=1), shares, limit)),
            "FDT75, all int8": float(percentiles[-1]),
            "FDT, all int8": float(leading[-1].mean()),
        }


def cumulate(one: Ordered) -> NDArray[np.float64]:
    """Share of the parameters at each of the depths."""
    sizes = np.array([one.parameters[name] for name in one.order], dtype=np.float64)
    shares: NDArray[np.float64] = (sizes.cumsum() / sizes.sum())[np.array(one.depths) - 1]
    return shares


def find_share(values: NDArray[np.float64], shares: NDArray[np.float64], limit: float) -> float:
    """At the last depth before `values` are below the limit for the first time."""
    below = values < limit
    first = int(below.argmax()) if below.any() else len(values)
    return float(shares[first - 1]) if first else 0.0


def describe_last(seeds: list[Ordered]) -> dict[str, Any]:
    """What the components that come last have in common."""
    row: dict[str, Any] = {"seed": "all"}
    count = max(1, round(LAST * len(seeds[0].order)))
    last = Counter(name for one in seeds for name in one.order[-count:])
    row["last"] = ", ".join(f"{shorten(name)} ({times})" for name, times in last.most_common(count))
    for outlier in OUTLIERS:
        values = np.array([[one.outliers[name][outlier] for name in one.order] for one in seeds])
        places = np.tile(np.arange(values.shape[1]), (len(seeds), 1))
        row[f"{outlier}, last"] = float(values[:, -count:].mean())
        row[f"{outlier}, others"] = float(values[:, :-count].mean())
        row[f"{outlier}, rank"] = float(spearmanr(values.ravel(), places.ravel()).statistic)
    return row


def shorten(name: str) -> str:
    """model.layers.3.self_attn.v_proj is 3.v_proj."""
    parts = name.split(".")
    return f"{next(part for part in parts if part.isdigit())}.{parts[-1]}"


def measure_seed(model: str, granularity: Granularity, tokens: int, seed: int, options: argparse.Namespace) -> Ordered:
    lengths = {"prefixes": options.prefixes, "proof_prefixes": options.proof, "continuation_tokens": tokens}
    with open_run(model, [Int8(granularity=granularity)], ["fdtm", "kl"], seed=seed, **lengths) as run:
        return measure_order(run, options.order)


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--tokens", nargs="*", type=int, default=[64, 256])
    parser.add_argument("--order", default="single", choices=ORDERS)
    parser.add_argument("--prefixes", type=int, default=64)
    parser.add_argument("--proof", type=int, default=256)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    keep, granularities = Keep(options.keep), (Granularity.tensor, Granularity.row)
    for model, granularity, tokens in itertools.product(options.models, granularities, options.tokens):
        keys = [
            (model, granularity.name, tokens, options.order, seed, options.prefixes, options.proof)
            for seed in options.seeds
        ]
        for key, seed in zip(keys, options.seeds, strict=True):
            if key not in keep:
                keep[key] = measure_seed(model, granularity, tokens, seed, options)
        seeds = [keep[key] for key in keys]
        for row in [*describe_shares(seeds, tokens), describe_last(seeds)]:
            yield {"model": model, "scale per": granularity.name, "tokens": tokens, **row}
