"""A table of the predicted costs and sizes of every treatment of every component, which answers schedules.

One estimate of a grid of options is enough for every plan: between two amounts of a compressor that offers a range,
changes and sizes are interpolated linearly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Component, Estimate, EstimateRequest, Offer, Plan, SizeRequest, Treatment
from compressor.errors import ConfigError
from compressor.sensitivity.shrinkage import steady_changes

Array = NDArray[np.float64]
STEPS = 20
"""The number of equal steps into which a range of amounts is divided."""


@dataclass(frozen=True)
class Options:
    """The predicted costs and sizes of one component, for the amounts of one compressor.

    `amounts` `[option]` ascend. `changes` `[sequence, option]` are changes of the objective's first value, and
    `bits` `[option]` the stored bits, scales included.
    """

    offer: Offer
    amounts: Array
    changes: Array
    bits: Array

    def mix(self, amount: float) -> Array:
        """`[option]`: the weights of the options in the interpolation at `amount`."""
        right = int(np.clip(np.searchsorted(self.amounts, amount), 1, max(1, len(self.amounts) - 1)))
        shares = np.zeros(len(self.amounts))
        if not self.offer.is_range or len(self.amounts) == 1:
            shares[np.abs(self.amounts - amount).argmin()] = 1.0
            return shares
        low, high = self.amounts[right - 1], self.amounts[right]
        share = float(np.clip((amount - low) / (high - low), 0.0, 1.0))
        shares[right - 1], shares[right] = 1 - share, share
        return shares


@dataclass(frozen=True)
class CostTable:
    """Component -> compressor -> options; `reached` is false for components that no token of the sequences reached."""

    components: Mapping[str, Component]
    options: Mapping[str, Mapping[str, Options]]
    reached: Mapping[str, bool]
    sequences: int

    def change(self, plan: Plan) -> Array:
        """`[sequence]`: the predicted change by a plan, which is the sum over its components."""
        total = np.zeros(self.sequences)
        for name, treatment in plan.items():
            options = self.find(name, treatment)
            total += options.changes @ options.mix(treatment.amount)
        return total

    def bits(self, name: str, treatment: Treatment | None) -> float:
        """Stored bits of a component after a treatment; None is the component as the checkpoint stores it."""
        if treatment is None:
            return float(self.components[name].parameters * self.components[name].stored_bits)
        options = self.find(name, treatment)
        return float(options.bits @ options.mix(treatment.amount))

    def reach(self, compressors: Sequence[str]) -> float:
        """The largest mean amount over components, where components that were not reached stay as they are."""
        most = {
            name: max(found[compressor].offer.largest for compressor in compressors) if self.reached[name] else 0.0
            for name, found in self.options.items()
        }
        total = sum(component.parameters for component in self.components.values())
        return sum(most[name] * component.parameters for name, component in self.components.items()) / total

    def answer_estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """The answer to a request: the mean over all sequences, in the place of one sequence.

        Raises ConfigError for requests that the table cannot answer.
        """
        if request.at or request.by_row:
            raise ConfigError(
                "a forecast knows whole matrices of the model as it is, not rows and not what a plan makes of it; use "
                "schedule.granularity=matrix and schedule.corrections=0"
            )
        answer = {}
        for name, treatments in request.options.items():
            means = [0.0 if t is None else float(self.change({name: t}).mean()) for t in treatments]
            answer[name] = Estimate(np.array([means]), reached=self.reached[name])
        return answer

    def answer_sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        """The stored bits of each option."""
        return {
            name: [round(self.bits(name, treatment)) for treatment in treatments]
            for name, treatments in request.options.items()
        }

    def find(self, name: str, treatment: Treatment) -> Options:
        """The options of a treatment's compressor; raises ConfigError for a treatment that is not in the table."""
        options = self.options[name].get(treatment.compressor)
        if options is None or treatment.rows or treatment.options:
            raise ConfigError(
                f"a forecast knows the configured compressors with one amount per matrix, got a treatment of `{name}` "
                f"by `{treatment.compressor}` with others; leave its options to the configuration"
            )
        options.offer.require(treatment.amount, treatment.compressor, self.components[name])
        return options


def sample_options(offers: Mapping[str, Mapping[str, Offer]], name: str) -> list[Treatment]:
    """The treatments of a component that are estimated: every fixed amount, and equal steps of every range."""
    return [
        Treatment(compressor, amount) for compressor, offer in offers.items() for amount in list_amounts(offer[name])
    ]


def list_amounts(offer: Offer) -> list[float]:
    """The amounts of an offer that are estimated, in ascending order."""
    if not offer.is_range:
        return sorted(offer.levels)
    return sorted({round(float(amount), 12) for amount in np.linspace(offer.low, offer.high, STEPS + 1)})


def make_cost_table(
    components: Mapping[str, Component],
    offers: Mapping[str, Mapping[str, Offer]],
    grid: Mapping[str, Sequence[Treatment]],
    estimates: Mapping[str, Estimate],
    sizes: Mapping[str, Sequence[int]],
) -> CostTable:
    """The table, from the estimates and the sizes in bits of a `grid` of treatments."""
    changes = steady_changes(estimates)
    options: dict[str, dict[str, Options]] = {}
    for name, treatments in grid.items():
        options[name] = {}
        for compressor, offer in offers.items():
            places = [index for index, treatment in enumerate(treatments) if treatment.compressor == compressor]
            options[name][compressor] = Options(
                offer[name],
                np.array([treatments[place].amount for place in places]),
                changes[name][:, places],
                np.array([sizes[name][place] for place in places], dtype=np.float64),
            )
    reached = {name: estimate.reached for name, estimate in estimates.items()}
    sequences = len(next(iter(estimates.values())).changes)
    return CostTable(components, options, reached, sequences)
