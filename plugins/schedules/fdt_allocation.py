"""Algorithm 1 of the paper: prune every component down to a common level of the metric."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from compressor.contracts import (
    Asks,
    Compressor,
    KeepRequest,
    Metric,
    Problem,
    Schedule,
    ScoreRequest,
    Search,
    Treatment,
)

from . import water_filling
from .targets import Span, Statistic, Vector, check_metric, check_order, check_single, choose_span

VALUE_OF_REMOVED = {"fdtm": 0.0}
"""Rankers whose value for a removed component is known by definition. It is measured for all others."""

Measured = dict[tuple[int, float], float]
"""(component, amount) -> value of the ranker."""


@dataclass
class FdtAllocation(Schedule):
    """Water-filling on measured curves, one round per cumulative target.

    max_a min_c FDT_c(a_c)  subject to  sum_c w_c a_c = target,  w_c = parameters_c / sum parameters

    A round that adds t scores every component alone at its current amount + t/2 and + 3t/2. The component's curve is
    linear between the value of the current model, these two values and that of the removed component (FDT 0 by
    definition, measured for other rankers). A running minimum makes it non-increasing. The common level starts at the
    best value and is lowered until the amounts at which the curves have that level reach the target. Scores always
    compare with the dense base.

    `ranker` is the metric of the curves, `statistic` its aggregate over prefixes. Without targets there is one round
    that takes half.

    Deiseroth et al., "Divergent Token Metrics", NAACL 2024, Algorithm 1.
    """

    name: ClassVar[str] = "fdt_allocation"

    targets: list[float] = field(default_factory=list)
    ranker: str = "fdtm"
    statistic: Statistic = Statistic.mean

    def ranks_by(self) -> tuple[str, ...]:
        return (self.ranker,)

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        check_single(compressors, self.name)
        check_order(self.targets)

    def search(self, problem: Problem) -> Search:
        span = choose_span(problem, self.name)
        targets = span.check_targets(self.targets)
        sign = check_metric(problem, self.ranker).sign
        current = np.zeros(len(span.names))
        for target in targets:
            amounts = yield from self._allocate(span, current, target, sign)
            request = KeepRequest(span.plan(amounts), target, last=target == targets[-1])
            current = span.read((yield from request))

    def _allocate(self, span: Span, current: Vector, target: float, sign: float) -> Asks[Vector]:
        """One round: the amounts `[component]` that reach the target. Trials are scored on top of the current model."""
        floor = np.maximum(current, span.low)
        ceiling = np.maximum(floor, span.high)
        added = target - span.mean(current)
        if target <= span.mean(floor):
            return floor
        removed = np.ones_like(ceiling) if self.ranker in VALUE_OF_REMOVED else ceiling
        near, far = (np.clip(current + share * added, floor, ceiling) for share in (0.5, 1.5))
        points = np.stack([current, near, far, removed], axis=1)
        measured = yield from self._measure(span, current, points)
        values = [[measured[index, amount] for amount in row] for index, row in enumerate(points.tolist())]
        goodness = water_filling.replace_non_finite(sign * np.array(values))
        curves = water_filling.cut_curves(points, water_filling.make_non_increasing(goodness), floor, ceiling)
        return water_filling.fill(*curves, span.parameters, target)

    def _measure(self, span: Span, current: Vector, points: Vector) -> Asks[Measured]:
        """The ranker at every point. Nothing is scored twice; the unchanged model is one trial for all components."""
        known: Measured = {}
        if self.ranker in VALUE_OF_REMOVED:
            known = {(index, 1.0): VALUE_OF_REMOVED[self.ranker] for index in range(len(span.names))}
        unchanged = set(enumerate(current.tolist()))
        wanted = {(index, amount): None for index, row in enumerate(points.tolist()) for amount in row}
        trials = [point for point in wanted if point not in unchanged and point not in known]
        changes = [{span.names[index]: Treatment(span.compressor, amount)} for index, amount in trials]
        answer = yield from ScoreRequest([{}, *changes], (self.ranker,))
        first, *others = (self.statistic.read(scores, self.ranker) for scores in answer)
        return known | dict.fromkeys(unchanged, first) | dict(zip(trials, others, strict=True))
