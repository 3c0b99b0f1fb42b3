"""Screening: predicts what trials do by one backward pass for all their treatments. Torch-free."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Estimate, EstimateRequest
from compressor.estimates import steady_changes
from compressor.racing import make_predicted, make_race
from compressor.values import Plan, Treatment

Array = NDArray[np.float64]
Answers = Callable[[EstimateRequest], Mapping[str, Estimate]]


@dataclass
class Screen:
    """What treatments are predicted to do to the model as it is in this round; each is asked about once.

    `estimates` of a component are for its `options`, in order.
    """

    options: dict[str, list[Treatment]] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)

    def find_beaten(
        self, trials: Sequence[Plan], objective: str, count: int, delta: float, ask: Answers
    ) -> NDArray[np.bool_]:
        """`[trial]`: those predicted to be worse by the objective than each of the `count` best predicted.

        Trials of which too little is known (empty ones, or where no token came to a component) take no part.
        """
        self.learn(trials, objective, ask)
        changes = steady_changes(self.estimates)
        known = [i for i, plan in enumerate(trials) if plan and all(self.estimates[name].reached for name in plan)]
        # An estimable metric is 0 for the base and grows with the change: the lower the better.
        predicted = [make_predicted(-self.predict(trials[index], changes)) for index in known]
        beaten = np.zeros(len(trials), dtype=bool)
        if predicted:
            race = make_race(count, len(predicted), 1, delta)
            beaten[known] = race.find_beaten(predicted, len(predicted[0].replicates))
        return beaten

    def learn(self, trials: Sequence[Plan], objective: str, ask: Answers) -> None:
        """Ask for estimates of the treatments that are new."""
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
            self.estimates[name] = estimate if old is None else join_options(old, estimate)
            self.options[name] = [*self.options.get(name, []), *new[name]]

    def predict(self, plan: Plan, changes: Mapping[str, Array]) -> Array:
        """`[sequence]`: the sum over the plan's components."""
        parts = [changes[name][:, self.options[name].index(treatment)] for name, treatment in plan.items()]
        total: Array = np.sum(parts, axis=0)
        return total


def join_options(first: Estimate, second: Estimate) -> Estimate:
    """Estimates of further options of the same component, on the same sequences, as one."""
    pairs = ((getattr(first, name), getattr(second, name)) for name in ("changes", "apart", "line"))
    changes, apart, line = (None if a is None or b is None else np.concatenate([a, b], axis=1) for a, b in pairs)
    assert changes is not None
    return Estimate(changes, reached=first.reached and second.reached, apart=apart, line=line)
