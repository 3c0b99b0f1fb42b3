"""Fused components: several components for which a schedule chooses one treatment. Torch-free.

Servers load query, key and value as one matrix, gate and up as one matrix, and all experts of a layer as one kernel.
Each of these has one format, so its components must have the same treatment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import islice
from operator import add
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import (
    Best,
    BestRequest,
    Component,
    CountRequest,
    Dialogue,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Offer,
    Oracle,
    Plan,
    Problem,
    Schedule,
    ScoreRequest,
    Scores,
    SizeRequest,
    Treatment,
    ValuesRequest,
)
from compressor.contracts.declarations import read_file_limit
from compressor.sensitivity.shrinkage import combine

T = TypeVar("T")
Options = Mapping[str, Sequence[Treatment | None]]
"""Component -> options; None is the unchanged component."""
TOGETHER = {**dict.fromkeys(("query", "key", "value"), "qkv"), **dict.fromkeys(("gate", "up"), "gate_up")}
"""Kind -> the name of the unit that it belongs to, within its module."""


def name_matrix(component: Component) -> str:
    """The matrix in the model: `model.layers.0.self_attn.qkv_proj:k` -> `model.layers.0.self_attn.qkv_proj`."""
    return component.name.partition(":")[0]


def name_unit(component: Component) -> str:
    """The unit of a component: `model.layers.0.self_attn.q_proj` -> `model.layers.0.self_attn.qkv`.

    One unit is query, key and value of an attention, gate and up of an MLP, or all experts of a layer.
    """
    experts = re.match(r"(.*\bexperts)\b", component.name)
    if experts and "shared_experts" not in component.name:
        return experts[1]
    parent, _, leaf = name_matrix(component).rpartition(".")
    return f"{parent}.{TOGETHER.get(component.kind, leaf)}"


@dataclass(frozen=True)
class Fusion:
    """Units by name, each with its components. A unit of one component has the name of the component."""

    units: Mapping[str, Sequence[Component]]

    def fuse_problem(self, problem: Problem) -> Problem:
        """The problem with units as its components."""
        return replace(
            problem,
            components=tuple(join_components(name, members) for name, members in self.units.items()),
            offers={
                compressor: {
                    name: join_offers(members, [offers[member.name] for member in members])
                    for name, members in self.units.items()
                }
                for compressor, offers in problem.offers.items()
            },
        )

    def spread(self, plan: Plan) -> dict[str, Treatment]:
        """A plan for units converted to a plan for components; rows are split between them."""
        return {
            member.name: part
            for name, treatment in plan.items()
            for member, part in zip(self.units[name], split_rows(treatment, self.units[name]), strict=True)
        }

    def spread_options(self, options: Options) -> dict[str, Sequence[Treatment | None]]:
        """Options of units converted to options of components; rows are split between them."""
        found: dict[str, Sequence[Treatment | None]] = {}
        for name, chosen in options.items():
            members = self.units[name]
            parts = [[None] * len(members) if option is None else split_rows(option, members) for option in chosen]
            found |= {member.name: [part[place] for part in parts] for place, member in enumerate(members)}
        return found

    def gather(self, names: Iterable[str], answer: Mapping[str, T]) -> Iterator[tuple[str, list[T]]]:
        """Each unit with the answers for its components."""
        return ((name, [answer[member.name] for member in self.units[name]]) for name in names)


@dataclass(frozen=True)
class FusedOracle:
    """Answers requests about units; it forwards requests about their components to `inner`."""

    inner: Oracle
    fusion: Fusion

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        return self.inner.score(replace(request, trials=self._spread(request.trials)))

    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        return self.inner.values(replace(request, trials=self._spread(request.trials)))

    def best(self, request: BestRequest) -> Best:
        return self.inner.best(replace(request, trials=self._spread(request.trials)))

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        fusion = self.fusion
        spread = replace(request, options=fusion.spread_options(request.options), at=fusion.spread(request.at))
        answer = self.inner.estimate(spread)
        return {name: join_estimates(parts) for name, parts in fusion.gather(request.options, answer)}

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        answer = self.inner.sizes(replace(request, options=self.fusion.spread_options(request.options)))
        return {name: sum_columns(parts) for name, parts in self.fusion.gather(request.options, answer)}

    def counts(self, request: CountRequest) -> dict[str, list[int]]:
        answer = self.inner.counts(request)
        return {name: sum_columns(parts) for name, parts in self.fusion.gather(self.fusion.units, answer)}

    def keep(self, request: KeepRequest) -> dict[str, float]:
        spread, units = self.fusion.spread, self.fusion.units
        curve = [replace(waypoint, plan=spread(waypoint.plan)) for waypoint in request.curve]
        answer = self.inner.keep(replace(request, plan=spread(request.plan), curve=curve))
        weights = {name: [member.parameters for member in members] for name, members in units.items()}
        return {
            name: float(np.average(parts, weights=weights[name])) for name, parts in self.fusion.gather(units, answer)
        }

    def _spread(self, trials: Sequence[Plan]) -> list[Plan]:
        return [self.fusion.spread(plan) for plan in trials]


def open_dialogue(schedule: Schedule, problem: Problem, oracle: Oracle, fuses: bool) -> tuple[Dialogue, Oracle]:
    """A dialogue with a schedule, and the oracle that answers it: `oracle`, or a `FusedOracle` around it.

    With `fuses`, components that servers load as one are fused. For a schedule that limits the size of files, the parts
    of each matrix are fused. For a schedule that repeats earlier decisions, nothing is fused.
    """
    if schedule.repeats or not (fuses or read_file_limit(schedule)):
        return Dialogue(schedule, problem), oracle
    fusion = fuse(problem.components, name_unit if fuses else name_matrix)
    return Dialogue(schedule, fusion.fuse_problem(problem)), FusedOracle(oracle, fusion)


def fuse(components: Iterable[Component], unit: Callable[[Component], str] = name_unit) -> Fusion:
    """Fuse the components for which `unit` returns the same name."""
    units: dict[str, list[Component]] = {}
    for component in components:
        units.setdefault(unit(component), []).append(component)
    return Fusion({members[0].name if len(members) == 1 else name: members for name, members in units.items()})


def join_components(name: str, members: Sequence[Component]) -> Component:
    """One component for all members. If their rows are equally long, its rows are theirs, one after the other."""
    if len(members) == 1:
        return members[0]
    total, width = sum(member.parameters for member in members), members[0].shape[1]
    width = width if all(member.shape[1] == width for member in members) else 1
    return Component(
        name=name,
        kind=name.rpartition(".")[2],
        layer=members[0].layer,
        shape=(total // width, width),
        stored_bits=members[0].stored_bits,
    )


def join_offers(members: Sequence[Component], offers: Sequence[Offer]) -> Offer:
    """The amounts that all members offer; by row only if their rows are equally long."""
    joined = reduce(intersect, offers)
    return joined if len({member.shape[1] for member in members}) == 1 else replace(joined, by_row=False)


def intersect(one: Offer, other: Offer) -> Offer:
    """The amounts that both offer; only 0 if there are none."""
    if one.is_range and other.is_range:
        low, high = max(one.low, other.low), min(one.high, other.high)
        return Offer(low=low, high=high, by_row=one.by_row and other.by_row) if low <= high else Offer(high=0.0)
    fixed, wide = (other, one) if one.is_range else (one, other)
    levels = tuple(level for level in fixed.levels if wide.contains(level))
    return Offer(levels=levels) if levels else Offer(high=0.0)


def split_rows(treatment: Treatment, members: Sequence[Component]) -> list[Treatment]:
    """The treatment of a unit for each of its members; their rows follow one another."""
    if treatment.rows is None:
        return [treatment] * len(members)
    rows = iter(treatment.rows)
    parts = [tuple(islice(rows, member.shape[0])) for member in members]
    return [replace(treatment, rows=part, amount=sum(part) / len(part)) for part in parts]


def sum_columns(parts: Sequence[Sequence[int]]) -> list[int]:
    """The sum over members for each option."""
    return [sum(column) for column in zip(*parts, strict=True)]


def join_estimates(parts: Sequence[Estimate]) -> Estimate:
    """The sum over members; their rows follow one another."""
    rows = [part.rows for part in parts if part.rows is not None]
    return combine(parts, partial(reduce, add), np.concatenate(rows) if rows else None)
