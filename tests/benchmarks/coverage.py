"""How often 95 % intervals hold the truth: the bootstrap-t of scores and of paired differences, and percentiles.

    python -m tests.benchmarks coverage [--samples 2000] [--sizes 8 16 32 64] [--seed 0]

A population of 20,000 sequences is made up, and samples of a few sequences are drawn from it with replacement. An
interval covers if it holds the metric's value of the whole population. `below` and `above` are the shares of intervals
that lie below and above it, `width` is the mean one. FDT is geometric with the mean that is named, as if every token
diverged with one probability, and cut at 64 tokens. KL is log-normal. Perplexity is that of windows of 20 to 127
counted tokens, whose nats per token are a shifted gamma variable with shape 4. The difference is that of the FDT of two
models of which one diverges where the other one does, or before.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Metric
from compressor.evaluation.bootstrap import LEVEL, compare_paired, draw_resamples, summarize
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.perplexity import Perplexity

SEQUENCES = 20_000
TOKENS = 64

Array = NDArray[np.float64]
Ends = tuple[float, float]


@dataclass(frozen=True)
class Population:
    """Values `[sequence, value]` of a model, and of another one where differences are asked for."""

    metric: Metric
    values: Array
    others: Array | None = None

    @property
    def truth(self) -> float:
        return float(self.resample(np.arange(SEQUENCES)[None])[0])

    def resample(self, rows: NDArray[np.intp]) -> Array:
        """`[resample]`: the value, or the difference, over `rows` `[resample, sequence]`."""
        found = self.metric.aggregate(self.values[rows])
        return found if self.others is None else found - self.metric.aggregate(self.others[rows])

    def bound(self, rows: NDArray[np.intp]) -> Ends:
        """The interval of this project over a sample."""
        if self.others is None:
            score = summarize(self.metric, self.values[rows])
            return score.low, score.high
        return compare_paired(self.metric, self.values[rows], self.others[rows])[1:]

    def bound_by_percentiles(self, rows: NDArray[np.intp]) -> Ends:
        low, high = np.percentile(self.resample(rows[draw_resamples(len(rows), 0)]), LEVEL)
        return float(low), float(high)


def make_populations(seed: int) -> Iterator[tuple[str, Population]]:
    generator = np.random.default_rng(seed)

    def draw_fdt(expected: float) -> Array:
        return np.minimum(generator.geometric(1 / (expected + 1), (SEQUENCES, 1)) - 1, TOKENS).astype(np.float64)

    for expected in (1, 5, 20, 60):
        yield f"FDT, {expected}", Population(Fdtm(), draw_fdt(expected))
    for spread in (0.7, 1.2):
        yield f"KL, {spread}", Population(Kl(), np.exp(spread * generator.normal(size=(SEQUENCES, 1))))
    for spread in (0.2, 0.5):
        tokens = generator.integers(20, 128, SEQUENCES)
        nats = tokens * (2.3 + spread * (generator.gamma(4, 0.5, SEQUENCES) - 2))
        yield f"perplexity, {spread}", Population(Perplexity(), np.stack([nats, tokens], axis=1))
    first = draw_fdt(20)
    yield "difference of FDT", Population(Fdtm(), first, np.minimum(first, draw_fdt(40)))


def cover(bound: Callable[[NDArray[np.intp]], Ends], samples: list[NDArray[np.intp]], truth: float) -> dict[str, float]:
    """Shares of the samples in %, and the mean width."""
    low, high = np.array([bound(rows) for rows in samples]).T
    return {
        "covers": 100 * float(np.mean((low <= truth) & (truth <= high))),
        "below": 100 * float(np.mean(high < truth)),
        "above": 100 * float(np.mean(low > truth)),
        "width": float(np.mean(high - low)),
    }


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--sizes", nargs="*", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, population in make_populations(options.seed):
        for size in options.sizes:
            generator = np.random.default_rng([options.seed, size])
            samples = [generator.integers(0, SEQUENCES, size) for _ in range(options.samples)]
            found = cover(population.bound, samples, population.truth)
            other = cover(population.bound_by_percentiles, samples, population.truth)
            yield {
                "population": name,
                "value": population.truth,
                "sequences": size,
                **found,
                **{f"{key}, percentile": value for key, value in other.items()},
            }
