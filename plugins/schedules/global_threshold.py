"""Global pruning: one importance threshold for all weights of the model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Asks, Compressor, CountRequest, KeepRequest, Metric, Problem, Schedule, Search
from compressor.errors import ConfigError

from .targets import Span, Vector, check_order, check_single, choose_span

Counts = NDArray[np.int64]
INFINITY = 0x7F800000
"""Bit pattern of the float32 infinity. Those of positive finite floats are smaller and have the order of the values."""
THRESHOLDS = 256
"""Per request. Four requests are enough to separate any two float32 values."""


@dataclass
class GlobalThreshold(Schedule):
    """Ranks all weights of the model together, one round per cumulative target; needs a compressor with `importance`.

    amount_c = #{w in c : importance(w) <= tau} / parameters_c,  tau such that the mean over all weights is the target

    tau is found to the last bit by counting weights. Of the weights with importance tau, each component prunes the same
    share. A component's amount never decreases, and never exceeds what the compressor offers for it.

    The global magnitude baseline of Han et al., "Learning both Weights and Connections", NeurIPS 2015, and of
    Blalock et al., "What is the State of Neural Network Pruning?", MLSys 2020.
    """

    name: ClassVar[str] = "global"

    targets: list[float] = field(default_factory=list)

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        check_single(compressors, self.name)
        check_order(self.targets)
        for name, compressor in compressors.items():
            if type(compressor).importance is Compressor.importance:
                raise ConfigError(
                    f"compressor `{name}` does not rank single weights, which schedule `{self.name}` needs; "
                    "use a pruner such as magnitude"
                )

    def search(self, problem: Problem) -> Search:
        span = choose_span(problem, self.name)
        targets = span.check_targets(self.targets)
        current = np.zeros(len(span.names))
        for target in targets:
            counts = yield from find_counts(span, current, target)
            request = KeepRequest(span.plan(counts / span.parameters), target, last=target == targets[-1])
            current = span.read((yield from request))


def find_counts(span: Span, current: Vector, target: float) -> Asks[Counts]:
    """How many weights `[component]` to prune so that the total is within one weight of the target.

    An interval of thresholds is narrowed until one end meets the total, or no float32 lies between the ends.
    """
    floor = np.ceil(np.maximum(current, span.low) * span.parameters - 1e-6).astype(np.int64)
    ceiling = np.maximum(floor, np.floor(span.high * span.parameters + 1e-6).astype(np.int64))
    wanted = min(max(round(target * float(span.parameters.sum())), int(floor.sum())), int(ceiling.sum()))
    bits, counts = [-INFINITY - 1, INFINITY + 1], [floor, ceiling]
    while bits[1] - bits[0] > 1 and wanted not in (counts[0].sum(), counts[1].sum()):
        grid = cut_bracket(*bits)
        answer = yield from CountRequest(span.compressor, float_at(grid))
        table = np.array([answer[name] for name in span.names], dtype=np.int64)
        # Clipped counts still increase with the threshold, so the interval encloses the wanted total.
        steps = [counts[0], *np.clip(table, floor[:, None], ceiling[:, None]).T, counts[1]]
        first = next(index for index, step in enumerate(steps) if step.sum() >= wanted)
        edges = [bits[0], *grid, bits[1]]
        bits, counts = edges[first - 1 : first + 1], steps[first - 1 : first + 1]
    return split_ties(counts[0], counts[1], wanted)


def cut_bracket(low: int, high: int) -> list[int]:
    """At most THRESHOLDS integers strictly between low and high, evenly spaced."""
    parts = min(THRESHOLDS + 1, high - low)
    return [low + (high - low) * part // parts for part in range(1, parts)]


def float_at(grid: list[int]) -> list[float]:
    """The float32 values at these ranks in the order of all float32; rank 0 is 0.0, and -n is the negative of n."""
    places = np.array(grid, dtype=np.int64)
    magnitudes = np.abs(places).astype(np.uint32).view(np.float32).astype(np.float64)
    return [math.copysign(value, place) for value, place in zip(magnitudes.tolist(), grid, strict=True)]


def split_ties(below: Counts, at: Counts, wanted: int) -> Counts:
    """Counts between `below` and `at` that sum to `wanted`, split in proportion; the largest remainders round up."""
    tied = int((at - below).sum())
    if tied == 0:
        return below
    exact = (at - below) * ((wanted - int(below.sum())) / tied)
    whole = np.floor(exact).astype(np.int64)
    missing = wanted - int(below.sum() + whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[: max(missing, 0)]] += 1
    counts: Counts = below + whole
    return counts
