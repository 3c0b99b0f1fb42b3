"""The requests of a budget: sizes of options and plans, estimated costs of options, measured costs of plans."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.contracts import Asks, Estimate, EstimateRequest, Plan, SizeRequest, ValuesRequest
from compressor.sensitivity.shrinkage import combine, steady_changes

from .convex_hull import Array
from .options import Choices, Options, Table, Values

Estimates = Mapping[str, Estimate]
"""Component -> the estimated effects of its options."""


@dataclass(frozen=True)
class Questions:
    """The requests of a round, with costs by `objective`. The `ask_` methods are generators of requests."""

    choices: Choices
    objective: str
    in_bits: bool = False
    on_disk: bool = False
    measured: bool = False
    by_row: bool = False

    def ask_sizes(self, options: Options) -> Asks[Values]:
        """The size of each option, `[unit, option]` by component: bits (packed or `on_disk`), or kept weights."""
        if not self.in_bits:
            return self.choices.sizes(options)
        answer = yield from SizeRequest(options, self.on_disk)
        return {name: np.array([bits], dtype=np.float64) for name, bits in answer.items()}

    def ask_size(self, plan: Plan) -> Asks[float]:
        """The size of a plan over all components."""
        options = {component.name: [plan.get(component.name)] for component in self.choices.problem.components}
        sizes = yield from self.ask_sizes(options)
        return sum(float(values.sum()) for values in sizes.values())

    def ask_estimates(self, options: Options, plan: Plan, start: int, stop: int) -> Asks[Estimates]:
        """Estimates of each option with `plan` on the model, on the search prefixes from `start` to `stop`."""
        return (yield from EstimateRequest(options, self.objective, plan, start, stop, self.by_row, self.measured))

    def ask_costs(self, plan: Plan) -> Asks[Array]:
        """What a plan costs on each of the search prefixes, `[sequence]`: the objective's first value."""
        (found,) = yield from ValuesRequest([plan], (self.objective,))
        return self.sign * found[self.objective]

    def tabulate(self, options: Options, sizes: Values, estimates: Estimates, reached: Collection[str]) -> Table:
        """Options with sizes, and costs of the components in `reached`; lower costs are better."""
        known = {name: estimate for name, estimate in estimates.items() if name in reached and estimate.reached}
        means = {name: changes.mean(axis=0, keepdims=True) for name, changes in steady_changes(known).items()}
        rows = {name: estimate.rows for name, estimate in known.items() if estimate.rows is not None}
        return Table(options, sizes, {name: self.sign * values for name, values in (means | rows).items()})

    @property
    def sign(self) -> float:
        """Factor from values of the objective to costs: -1 if higher values are better, else 1."""
        return -self.choices.problem.better[self.objective].sign


def merge(first: Estimates, second: Estimates) -> Estimates:
    """Estimates on two sets of sequences as one; `first` may be empty."""
    return {name: _merge_one([first[name], estimate]) for name, estimate in second.items()} if first else second


def _merge_one(parts: Sequence[Estimate]) -> Estimate:
    rows = [part.rows for part in parts if part.rows is not None]
    counts = [len(part.changes) for part in parts]
    return combine(parts, np.concatenate, np.average(rows, axis=0, weights=counts) if rows else None)
