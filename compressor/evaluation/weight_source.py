"""Where the weights of a trial come from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from compressor.contracts import Plan, Treatment
from compressor.models import Replacement

Weights = Mapping[str, Replacement]
"""Component name -> the weight `[out, in]` that replaces its own."""


class WeightSource(Protocol):
    """Makes the weights of trials. It must make the same weight each time it is asked for the same treatment."""

    def make(self, component: str, treatment: Treatment) -> Replacement:
        """The weight `[out, in]` of the component after the treatment."""
        ...


def make_weights(source: WeightSource, plan: Plan, names: Collection[str] | None = None) -> dict[str, Replacement]:
    """The weights of a plan, or only those of the components `names`."""
    return {name: source.make(name, treatment) for name, treatment in plan.items() if names is None or name in names}
