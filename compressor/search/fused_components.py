"""Components that must share a treatment are one to a schedule: requests and answers are translated. Torch-free.

Servers load query, key and value as one matrix, gate and up as one, and all experts of a layer as one kernel. Each of
these then has one format, so a search should decide for them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import (
    BestRequest,
    Component,
    CountRequest,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Offer,
    Plan,
    Problem,
    Request,
    Schedule,
    ScoreRequest,
    Search,
    SizeRequest,
    Treatment,
)

TOGETHER = {**dict.fromkeys(("query", "key", "value"), "qkv"), **dict.fromkeys(("gate", "up"), "gate_up")}
"""Kind -> what the matrices of one module that go with it are called together."""


def name_matrix(component: Component) -> str:
    """`model.layers.0.self_attn.qkv_proj:k` -> `model.layers.0.self_attn.qkv_proj`: what is one matrix in the model."""
    return component.name.partition(":")[0]


def name_unit(component: Component) -> str:
    """`model.layers.0.self_attn.q_proj` -> `model.layers.0.self_attn.qkv`.

    Query, key and value of an attention are one unit, gate and up of an MLP, and all experts of a layer.
    """
    experts = re.match(r"(.*\bexperts)\b", component.name)
    if experts and "shared_experts" not in component.name:
        return experts[1]
    parent, _, leaf = name_matrix(component).rpartition(".")
    return f"{parent}.{TOGETHER.get(component.kind, leaf)}"


@dataclass(frozen=True)
class Fusion:
    """Units by name, each with the components it is made of; most are made of one, and have its name."""

    units: Mapping[str, Sequence[Component]]

    def problem(self, problem: Problem) -> Problem:
        """The problem in units."""
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

    def expand(self, request: Request) -> Request:
        """The request in components."""
        match request:
            case ScoreRequest() | BestRequest():
                return replace(request, trials=[self.spread(plan) for plan in request.trials])
            case EstimateRequest():
                return replace(request, options=self.spread_options(request.options), at=self.spread(request.at))
            case SizeRequest():
                return replace(request, options=self.spread_options(request.options))
            case KeepRequest():
                curve = [replace(waypoint, plan=self.spread(waypoint.plan)) for waypoint in request.curve]
                return replace(request, plan=self.spread(request.plan), curve=curve)
        return request

    def fold(self, request: Request, answer: Any) -> Any:  # noqa: ANN401 - each request says what its answer is
        """The answer to a request that was made in units."""
        match request:
            case EstimateRequest():
                return {name: join_estimates(parts) for name, parts in self.gather(request.options, answer)}
            case SizeRequest():
                return {name: sum_columns(parts) for name, parts in self.gather(request.options, answer)}
            case CountRequest():
                return {name: sum_columns(parts) for name, parts in self.gather(self.units, answer)}
            case KeepRequest():
                weights = {name: [member.parameters for member in members] for name, members in self.units.items()}
                return {
                    name: float(np.average(parts, weights=weights[name]))
                    for name, parts in self.gather(self.units, answer)
                }
        return answer

    def gather(self, names: Iterable[str], answer: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
        """Each unit with the answers for its members."""
        return ((name, [answer[member.name] for member in self.units[name]]) for name in names)

    def spread(self, plan: Plan) -> dict[str, Treatment]:
        """A plan for units as one for components; each takes its own of the rows."""
        return {
            member.name: part
            for name, treatment in plan.items()
            for member, part in zip(self.units[name], split_rows(treatment, self.units[name]), strict=True)
        }

    def spread_options(
        self, options: Mapping[str, Sequence[Treatment | None]]
    ) -> dict[str, Sequence[Treatment | None]]:
        """Each member has the options of its unit, with its own of their rows."""
        found: dict[str, Sequence[Treatment | None]] = {}
        for name, chosen in options.items():
            members = self.units[name]
            parts = [[None] * len(members) if option is None else split_rows(option, members) for option in chosen]
            found |= {member.name: [part[place] for part in parts] for place, member in enumerate(members)}
        return found


@dataclass
class FusedSchedule(Schedule):
    """`inner` as a schedule for components: it decides for units, which `unit` names, and does not know of it."""

    inner: Schedule
    unit: Callable[[Component], str] = name_unit

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    def search(self, problem: Problem) -> Search:
        fusion = fuse(problem.components, self.unit)
        inner = self.inner.search(fusion.problem(problem))
        request = next(inner, None)
        while request is not None:
            answer = yield fusion.expand(request)
            try:
                request = inner.send(fusion.fold(request, answer))
            except StopIteration:
                return


def fuse(components: Iterable[Component], unit: Callable[[Component], str] = name_unit) -> Fusion:
    """Components for which `unit` gives the same name together; the others stay alone."""
    units: dict[str, list[Component]] = {}
    for component in components:
        units.setdefault(unit(component), []).append(component)
    return Fusion({members[0].name if len(members) == 1 else name: members for name, members in units.items()})


def join_components(name: str, members: Sequence[Component]) -> Component:
    """One component with the weights of all; its rows are theirs, one after the other, where these are equally long."""
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
    """What all members offer; rows only where theirs are equally long, for else the unit has none."""
    joined = reduce(intersect, offers)
    return joined if len({member.shape[1] for member in members}) == 1 else replace(joined, by_row=False)


def intersect(one: Offer, other: Offer) -> Offer:
    """The amounts that both offer."""
    if one.is_range and other.is_range:
        return Offer(low=max(one.low, other.low), high=min(one.high, other.high), by_row=one.by_row and other.by_row)
    fixed, wide = (other, one) if one.is_range else (one, other)
    return Offer(levels=tuple(level for level in fixed.levels if wide.contains(level)))


def split_rows(treatment: Treatment, members: Sequence[Component]) -> list[Treatment]:
    """The treatment of a unit for each of its members, whose rows are one after the other."""
    if treatment.rows is None:
        return [treatment] * len(members)
    rows = iter(treatment.rows)
    parts = [tuple(islice(rows, member.shape[0])) for member in members]
    return [replace(treatment, rows=part, amount=sum(part) / len(part)) for part in parts]


def sum_columns(parts: Sequence[Sequence[int]]) -> list[int]:
    """Sums over members of what each option takes."""
    return [sum(column) for column in zip(*parts, strict=True)]


def join_estimates(parts: Sequence[Estimate]) -> Estimate:
    """The sum over members; rows one after the other."""

    def total(name: str) -> NDArray[np.float64] | None:
        arrays = [getattr(part, name) for part in parts]
        return None if any(array is None for array in arrays) else reduce(add, arrays)

    rows = [part.rows for part in parts if part.rows is not None]
    changes = total("changes")
    assert changes is not None
    return Estimate(
        changes,
        np.concatenate(rows) if len(rows) == len(parts) else None,
        any(part.reached for part in parts),
        total("apart"),
        total("line"),
    )
