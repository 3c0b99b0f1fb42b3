"""How many prefixes, of which length and continued by how many tokens, does a metric need?

    python -m tests.benchmarks protocol [--models NAME …] [--prefix-tokens 32] [--tokens 16 64 100]
                                        [--pool 2048] [--draws 1000] [--keep FOLDER]

The protocol of Deiseroth et al., Divergent Token Metrics, NAACL 2024, has 1,000 prefixes of 100 tokens, continued by
100. Here every matrix is treated alike: pruned by magnitude by 20, 25, 50 and 55 %, or rounded to 4 bits in groups of
32. Each plan is scored once on the `--pool` of prefixes that the base sampled, with the longest continuation. A shorter
one is its beginning, because the base continues greedily. The truth is the value over the pool; `distinct` of its
prefixes are different, because the base begins many texts alike.

Samples of 8 to 1,024 prefixes are drawn from the pool with replacement, `--draws` times. A row for each plan and metric
has the value and the root mean square error of samples, in % of the value. A row for each pair of plans has for each
metric the `gap`, which is their difference divided by the standard deviation of the difference of one prefix, and how
many prefixes put both plans in the right order in 95 % of draws; a tie counts one half. Both plans are scored on the
same prefixes. FDT75 has no gap, because it is no mean.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressor.commands.run import Run
from compressor.contracts import Plan, Prefixes, Readout, Treatment
from compressor.settings import DataSettings
from compressor_plugins.metrics.kl import Kl, divergence
from compressor_plugins.metrics.sdtm import Sdtm
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.rtn import Rtn

from .keeping import Keep
from .runs import MODELS, open_run

SPARSITIES = (0.2, 0.25, 0.5, 0.55)
BITS = 4
PAIRS = (("20% pruned", "25% pruned"), ("25% pruned", "4 bits"), ("50% pruned", "55% pruned"))
ERROR_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
ORDER_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
ENOUGH = 0.95
BATCH = 64
"""Sequences in a forward pass: more than usual, because the base generates many tokens here."""

Array = NDArray[np.float64]


class Differences(Sdtm):
    """1 at every position where the candidate predicts another token, else 0."""

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return (candidate.predicted != candidate.tokens).double()


class PositionKl(Kl):
    """KL at every position."""

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return divergence(candidate, base).clamp(min=0.0).double()


@dataclass(frozen=True)
class Pool:
    """What a plan does on all prefixes, both `[prefix, position]`; so many of the prefixes are `distinct`."""

    differs: NDArray[np.bool_]
    kl: NDArray[np.float32]
    distinct: int

    def read(self, tokens: int) -> dict[str, Array]:
        """By metric, `[prefix]`, where continuations have so many tokens."""
        differs = self.differs[:, :tokens]
        return {
            "FDT": np.logical_and.accumulate(~differs, axis=1).sum(axis=1).astype(np.float64),
            "SDT": differs.sum(axis=1).astype(np.float64),
            "KL": self.kl[:, :tokens].mean(axis=1, dtype=np.float64),
        }


def take_mean(values: Array) -> Array:
    mean: Array = values.mean(axis=-1)
    return mean


def take_p75(values: Array) -> Array:
    percentile: Array = np.percentile(values, 75, axis=-1)
    return percentile


STATISTICS: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
    "FDT75": ("FDT", take_p75),
    "FDT": ("FDT", take_mean),
    "SDT": ("SDT", take_mean),
    "KL": ("KL", take_mean),
}
"""Name -> the values per prefix, and what becomes of them: `[..., prefix]` -> `[...]`."""


def list_plans(run: Run) -> dict[str, Plan]:
    """Name -> a plan that treats every component alike."""
    components = run.setup.model.components.values()
    plans: dict[str, Plan] = {
        f"{sparsity:.0%} pruned": {c.name: Treatment(Magnitude.name, sparsity) for c in components}
        for sparsity in SPARSITIES
    }
    plans[f"{BITS} bits"] = {c.name: Treatment(Rtn.name, 1 - BITS / c.stored_bits) for c in components}
    return plans


def score_pool(model: str, prefix: int, tokens: int, pool: int, seed: int) -> dict[str, Pool]:
    """What every plan does on all prefixes."""
    metrics = {"differs": Differences(), "kl": PositionKl()}
    data = DataSettings(prefixes=pool, proof_prefixes=1, prefix_tokens=prefix, continuation_tokens=tokens)
    compressors = [Magnitude(), Rtn(bits=[BITS])]
    with open_run(model, compressors, metrics, seed=seed, data=data, batch=BATCH) as run:
        plans, evaluator = list_plans(run), run.setup.evaluators[Prefixes.SEARCH]
        distinct = len(evaluator.reference.tokens[:, :prefix].unique(dim=0))
        found = evaluator.score_all([*plans.values()])
        return {
            name: Pool(values["differs"] > 0, values["kl"].astype(np.float32), distinct)
            for name, values in zip(plans, found, strict=True)
        }


@functools.lru_cache(maxsize=len(ORDER_SIZES))
def draw_samples(pool: int, size: int, draws: int, seed: int) -> NDArray[np.intp]:
    """`[draw, size]`: prefixes of each sample, the same for everything that is scored on this pool."""
    return np.random.default_rng([seed, size]).integers(0, pool, (draws, size))


def find_error(statistic: Callable[[Array], Array], values: Array, samples: NDArray[np.intp]) -> float:
    """Root mean square of sample minus truth, over the truth."""
    truth = float(statistic(values))
    error = float(np.sqrt(np.mean((statistic(values[samples]) - truth) ** 2)))
    return error / truth if truth else 0.0


def find_order(
    statistic: Callable[[Array], Array], first: Array, second: Array, samples: NDArray[np.intp]
) -> float | None:
    """The share of samples that order both as the pool does; None where the pool sees no difference."""
    truth = float(statistic(first) - statistic(second))
    if not truth:
        return None
    found = np.sign(truth) * (statistic(first[samples]) - statistic(second[samples]))
    return float(np.mean(found > 0) + np.mean(found == 0) / 2)


def count_needed(shares: Mapping[int, float | None]) -> int | str:
    """The number of prefixes from which on the order is right often enough."""
    if None in shares.values():
        return "equal"
    enough = list(itertools.takewhile(lambda size: (shares[size] or 0.0) >= ENOUGH, sorted(shares, reverse=True)))
    return enough[-1] if enough else f"> {max(shares)}"


def describe_errors(pools: Mapping[str, Pool], tokens: int, draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each plan and metric."""
    for plan, pool in pools.items():
        values = pool.read(tokens)
        for metric, (name, statistic) in STATISTICS.items():
            errors = {
                f"error of {size}, %": 100
                * find_error(statistic, values[name], draw_samples(len(values[name]), size, draws, seed))
                for size in ERROR_SIZES
            }
            yield {"plan": plan, "metric": metric, "value": float(statistic(values[name])), **errors}


def describe_pairs(pools: Mapping[str, Pool], tokens: int, draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each pair of plans."""
    for names in PAIRS:
        first, second = (pools[name].read(tokens) for name in names)
        row: dict[str, Any] = {"plan": " against ".join(names)}
        for metric, (name, statistic) in STATISTICS.items():
            shares = {
                size: find_order(
                    statistic, first[name], second[name], draw_samples(len(first[name]), size, draws, seed)
                )
                for size in ORDER_SIZES
            }
            row[f"prefixes, {metric}"] = count_needed(shares)
            if statistic is take_mean:
                difference = first[name] - second[name]
                row[f"gap, {metric}"] = float(abs(difference.mean()) / max(difference.std(), np.finfo(float).tiny))
        yield row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--prefix-tokens", nargs="+", type=int, default=[32])
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 64, 100])
    parser.add_argument("--pool", type=int, default=2048)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    keep = Keep(options.keep)
    for model, prefix in itertools.product(options.models, options.prefix_tokens):
        key = ("pool", Path(model).name, prefix, max(options.tokens), options.pool, options.seed)
        if key not in keep:
            keep[key] = score_pool(model, prefix, max(options.tokens), options.pool, options.seed)
        for tokens in options.tokens:
            distinct = next(iter(keep[key].values())).distinct
            setting = {"model": Path(model).name, "prefix": prefix, "distinct": distinct, "tokens": tokens}
            for describe in (describe_errors, describe_pairs):
                yield from ({**setting, **row} for row in describe(keep[key], tokens, options.draws, options.seed))
