"""Weight sources for tests: weights that a test gives itself, and weights with random zeros."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.contracts import Plan, TokenRounding, Treatment
from compressor.models import Model, Replacement


@dataclass
class GivenWeights:
    """Hands out a treatment for each weight that it is given, and makes the weight of the treatment from it."""

    given: list[Replacement] = field(default_factory=list)

    def add(self, weight: Tensor | Replacement) -> Treatment:
        """A treatment that stands for the weight; each call gives another one."""
        self.given.append(Replacement.of(weight))
        return Treatment("given", 0.0, {"number": len(self.given) - 1})

    def add_plan(self, weights: Mapping[str, Tensor | Replacement]) -> Plan:
        """A trial that puts these weights on the components."""
        return {name: self.add(weight) for name, weight in weights.items()}

    def make(self, component: str, treatment: Treatment) -> Replacement:
        return self.given[treatment.options["number"]]


@dataclass
class MaskedWeights:
    """Puts a random share of a weight to zero: `amount` is that share, the option `seed` draws which.

    With the option `bits` the inputs are rounded to so many bits. It also makes the weights of `given`.
    """

    model: Model
    given: GivenWeights = field(default_factory=GivenWeights)

    def make(self, component: str, treatment: Treatment) -> Replacement:
        if treatment.compressor == "given":
            return self.given.make(component, treatment)
        weight, options = self.model.read(component), treatment.options
        drawn = torch.rand(weight.shape, generator=torch.Generator().manual_seed(options["seed"]))
        transform = TokenRounding(options["bits"]) if options.get("bits") else None
        return Replacement(weight * (drawn > treatment.amount), transform)


def mask(seed: int, amount: float = 0.3, bits: int | None = None) -> Treatment:
    """A treatment of MaskedWeights."""
    return Treatment("masked", amount, {"seed": seed} if bits is None else {"seed": seed, "bits": bits})
