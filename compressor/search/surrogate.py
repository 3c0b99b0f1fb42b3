"""Surrogate model of trials: estimates from one backward pass, corrected by the measured trials."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Estimate, EstimateRequest, Plan, Treatment
from compressor.search.kriging import Trials, krige
from compressor.sensitivity.shrinkage import combine, steady_changes

Array = NDArray[np.float64]
Answers = Callable[[EstimateRequest], Mapping[str, Estimate]]
REMEMBERED = 256
"""The number of latest measured trials that a prediction uses."""


@dataclass
class Surrogate:
    """Estimated effects of treatments on the model of this round, and the values of measured trials.

    Each treatment is estimated once; `estimates` of a component are for its `options`, in order. `measured` has plans
    and their values (larger is better) for each quantity, a metric with a statistic.
    """

    options: dict[str, list[Treatment]] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    measured: dict[str, list[tuple[Plan, float]]] = field(default_factory=dict)

    def predict(self, trials: Sequence[Plan], objective: str, ask: Answers) -> Array:
        """`[trial]`: the estimated change of the objective, a sum over treatments, averaged over sequences."""
        self.learn(trials, objective, ask)
        changes = {name: found.mean(axis=0) for name, found in steady_changes(self.estimates).items()}
        return np.array([
            sum(changes[name][self.options[name].index(treatment)] for name, treatment in plan.items())
            for plan in trials
        ])  # fmt: skip

    def learn(self, trials: Sequence[Plan], objective: str, ask: Answers) -> None:
        """Request estimates of the treatments that have none."""
        new: dict[str, list[Treatment]] = {}
        for plan in trials:
            for name, treatment in plan.items():
                if treatment not in self.options.get(name, []) and treatment not in new.setdefault(name, []):
                    new[name].append(treatment)
        new = {name: options for name, options in new.items() if options}
        if not new:
            return
        for name, estimate in ask(EstimateRequest(new, objective)).items():
            old = self.estimates.get(name)
            self.estimates[name] = estimate if old is None else combine([old, estimate], np.hstack)
            self.options[name] = [*self.options.get(name, []), *new[name]]

    def note(self, quantity: str, plan: Plan, value: float) -> None:
        """Record the value of a measured trial; `quantity` names the metric and the statistic."""
        self.measured.setdefault(quantity, []).append((plan, value))

    def bound(self, quantity: str, trials: Sequence[Plan], objective: str, level: float, ask: Answers) -> Array | None:
        """`[trial]`: upper bounds that values exceed with probability `level`; None if too few trials were measured.

        If all measured values have the same sign, their logarithms are predicted.
        """
        from scipy.special import stdtrit  # heavy, and not always needed

        known = self.measured.get(quantity, [])[-REMEMBERED:]
        plans, values = [plan for plan, _ in known], np.array([value for _, value in known])
        sign = np.sign(values[0]) if known and np.all(values * values[0] > 0) else 0.0
        changes = take_logarithms(self.predict([*plans, *trials], objective, ask))
        members, count = self._list_members([*plans, *trials]), len(plans)
        before, after = Trials(members[:count], changes[:count]), Trials(members[count:], changes[count:])
        found = krige(before, sign * np.log(np.abs(values)) if sign else values, after)
        if found is None:
            return None
        means, errors, freedom = found
        bounds: Array = means + stdtrit(freedom, 1 - level) * errors
        return sign * np.exp(sign * bounds) if sign else bounds

    def _list_members(self, trials: Sequence[Plan]) -> Array:
        """`[trial, treatment]`: 1 if the plan has the treatment, else 0."""
        columns: dict[tuple[str, int], int] = {}
        rows = [
            [
                columns.setdefault((name, self.options[name].index(treatment)), len(columns))
                for name, treatment in plan.items()
            ]
            for plan in trials
        ]
        members = np.zeros((len(trials), len(columns)))
        for row, own in enumerate(rows):
            members[row, own] = 1.0
        return members


def take_logarithms(changes: Array) -> Array:
    """Logarithms of changes. Changes that are not positive count as the smallest positive one."""
    positive = changes[changes > 0]
    return np.log(np.maximum(changes, positive.min())) if len(positive) else np.zeros_like(changes)
