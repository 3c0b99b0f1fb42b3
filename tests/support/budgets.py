"""Problems with components of uneven hardness, and schedules that play on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compressor.contracts import Better, Plan
from compressor.testing.problems import COMPONENTS, DryRun, make_problem
from compressor_plugins.schedules.budget.budget import Budget

BOTH = {"kl": Better.LOWER, "fdtm": Better.HIGHER}

PARAMETERS = sum(component.parameters for component in COMPONENTS)


@dataclass
class Uneven(DryRun):
    """Random hardnesses; what `round` does costs half of what `prune` does at the same amount."""

    def hardness(self) -> dict[str, float]:
        drawn = np.random.default_rng(self.problem.seed).lognormal(0, 1.5, len(self.problem.components))
        return {c.name: float(h) * c.parameters for c, h in zip(self.problem.components, drawn, strict=True)}

    def damage(self, plan: Plan) -> float:
        hardness = self.hardness()
        return sum(self.harm(name, t.compressor, t.amount) for name, t in plan.items()) / sum(hardness.values())

    def harm(self, name: str, compressor: str, amount: float) -> float:
        return self.hardness()[name] * amount**2 * (0.5 if compressor == "round" else 1.0)

    def mean(self, plan: Plan) -> float:
        return sum(c.parameters * plan[c.name].amount for c in self.problem.components if c.name in plan) / PARAMETERS


@dataclass
class Crossed(Uneven):
    """Components of a layer harm one another: beside the sum of their harms, products of their amounts."""

    def damage(self, plan: Plan) -> float:
        amounts = [plan[c.name].amount if c.name in plan else 0.0 for c in self.problem.components]
        pairs = zip(amounts[0::3], amounts[1::3], amounts[2::3], strict=True)
        return super().damage(plan) + sum(3 * q * k + 2 * k * d for q, k, d in pairs)


def play(schedule: Budget, *compressors: str, cls: type[Any] = Uneven, seed: int = 0, **changes: Any) -> Any:  # noqa: ANN401
    rehearsal = cls(replace(make_problem(compressors or ("prune",), BOTH, seed), **changes))
    rehearsal.play(schedule)
    return rehearsal


def requests_of(rehearsal: DryRun, kind: type[Any]) -> list[Any]:
    return [request for request in rehearsal.requests if isinstance(request, kind)]
