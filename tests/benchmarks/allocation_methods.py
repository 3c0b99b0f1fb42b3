"""The searches that `allocation` compares, and the budgets that it gives them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.contracts import Compressor, KeepRequest, Problem, Schedule, Search, Treatment
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.budget.budget import Budget, EstimateBy, Granularity
from compressor_plugins.schedules.evolution.evolution import Evolution
from compressor_plugins.schedules.fdt_allocation import FdtAllocation, Statistic
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.uniform import Uniform

from .heuristics import Heuristic

PREFIXES = 64
"""That a search decides on, where its method says nothing else."""


@dataclass(frozen=True)
class Method:
    """A schedule for a budget, on so many prefixes and over so many amounts of each component.

    `heuristic` answers its estimates in place of the backward pass.
    """

    make: Callable[[Any], Schedule]
    prefixes: int = PREFIXES
    heuristic: Heuristic | None = None
    amounts: int = 21


@dataclass
class SameWidth(Schedule):
    """The same integers everywhere, whatever the checkpoint stores."""

    name = "same_width"
    width: int

    def search(self, problem: Problem) -> Search:
        yield KeepRequest({c.name: Treatment("rtn", 1 - self.width / c.stored_bits) for c in problem.components})


PRUNING: dict[str, Method] = {
    "uniform": Method(lambda t: Uniform(targets=[t])),
    "global magnitude": Method(lambda t: GlobalThreshold(targets=[t])),
    "Algorithm 1, p75": Method(lambda t: FdtAllocation(targets=[t], statistic=Statistic.p75)),
    "Algorithm 1, mean": Method(lambda t: FdtAllocation(targets=[t])),
    "gradient magnitude": Method(lambda t: Budget(targets=[t], corrections=0), heuristic=Heuristic.gradient),
    "Hessian trace": Method(lambda t: Budget(targets=[t], corrections=0), heuristic=Heuristic.trace),
    "one pass, KL": Method(lambda t: Budget(targets=[t], corrections=0)),
    "one pass, σ²": Method(lambda t: Budget(targets=[t], corrections=0, objective="margin_noise")),
    "corrected, KL": Method(lambda t: Budget(targets=[t])),
    "corrected, σ²": Method(lambda t: Budget(targets=[t], objective="margin_noise")),
    "per row, one pass": Method(lambda t: Budget(targets=[t], corrections=0, granularity=Granularity.row), 256),
    "per row, corrected": Method(lambda t: Budget(targets=[t], granularity=Granularity.row), 256),
    "measured singles": Method(lambda t: Budget(targets=[t], corrections=0, estimate=EstimateBy.measured), amounts=11),
    "evolution": Method(lambda t: Evolution(targets=[t])),
}
INTEGERS: dict[str, Method] = {
    "uniform": Method(lambda bits: SameWidth(max(width for width in Rtn().bits if width <= bits))),
    "gradient magnitude": Method(lambda bits: Budget(bits=bits, corrections=0), heuristic=Heuristic.gradient),
    "Hessian trace": Method(lambda bits: Budget(bits=bits, corrections=0), heuristic=Heuristic.trace),
    "one pass, KL": Method(lambda bits: Budget(bits=bits, corrections=0)),
    "one pass, σ²": Method(lambda bits: Budget(bits=bits, corrections=0, objective="margin_noise")),
    "corrected, KL": Method(lambda bits: Budget(bits=bits)),
    "corrected, σ²": Method(lambda bits: Budget(bits=bits, objective="margin_noise")),
    "measured singles": Method(lambda bits: Budget(bits=bits, corrections=0, estimate=EstimateBy.measured)),
    "evolution": Method(lambda bits: Evolution(bits=bits)),
}


@dataclass(frozen=True)
class Group:
    """Budgets that share a compressor: the methods and the one that differences are taken to."""

    compressor: Compressor
    methods: Mapping[str, Method]
    baseline: str
    budgets: Mapping[str, float]


GROUPS = (
    Group(Magnitude(), PRUNING, "Algorithm 1, mean", {f"{t:.0%} sparsity": t for t in (0.20, 0.35, 0.50)}),
    Group(Rtn(group=64), INTEGERS, "uniform", {"3.25 bits": 3.25}),
    Group(Rtn(group=32), INTEGERS, "uniform", {"4.5 bits": 4.5}),
)
BUDGETS = [text for group in GROUPS for text in group.budgets]
