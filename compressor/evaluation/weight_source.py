"""Where the weights of trials come from: a source makes them, and they are made where they are used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from compressor.contracts import Plan, Treatment
from compressor.models import Replacement

Weights = Mapping[str, Replacement]
"""Component name -> the weight `[out, in]` that replaces its own."""

MOST_BYTES = 1 << 28
"""Bytes of trial weights that are held at once; the weights of a single trial may need more.

A constant, not a share of the memory budget: trials that are held together can be run as one batch on a GPU, and how
its kernels round depends on the shape of the batch.
"""


class WeightSource(Protocol):
    """Makes the weights of trials. It must make the same weight each time it is asked for the same treatment."""

    def make(self, component: str, treatment: Treatment) -> Replacement:
        """The weight `[out, in]` of the component after the treatment."""
        ...


def make_weights(source: WeightSource, plan: Plan, names: Collection[str] | None = None) -> dict[str, Replacement]:
    """The weights of a plan, or only those of the components `names`."""
    return {name: source.make(name, treatment) for name, treatment in plan.items() if names is None or name in names}


def make_weights_in_groups(
    source: WeightSource, plans: Mapping[int, Plan], names: Collection[str] | None = None
) -> Iterator[dict[int, Weights]]:
    """The weights of numbered plans, in groups: a group ends when its weights take `MOST_BYTES` or more."""
    group: dict[int, Weights] = {}
    held = 0
    for number, plan in plans.items():
        group[number] = make_weights(source, plan, names)
        held += sum(weight.nbytes for weight in group[number].values())
        if held >= MOST_BYTES:
            yield group
            group, held = {}, 0
    if group:
        yield group
