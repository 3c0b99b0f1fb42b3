"""The paper's beam search over the components to treat: one more at each depth, keeping the best plans."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from compressor.contracts import (
    BestRequest,
    Compressor,
    KeepRequest,
    Metric,
    Plan,
    Problem,
    Schedule,
    Search,
    SizeRequest,
    Treatment,
    Waypoint,
)
from compressor.errors import ConfigError

from ..targets import Statistic, check_amount, check_any, check_bits, check_metric, check_shrinks
from .moves import SizeBounds, State, list_moves, measure_size_bounds


@dataclass
class Beam(Schedule):
    """Beam search: plans at depth d treat d components, and the best plan at the last depth is kept.

    beam_0 = {the current model}
    beam_d = the `width` best of { plan + one option of a component not in it : plan in beam_{d−1} }

    The options of a compressor are its fixed levels, or `amount` if it offers a range. Plans are ranked by a
    `statistic` of the metric `ranker`; a width of 1 is greedy search. The search ends at `count` components, before the
    statistic gets worse than `floor`, at the first depth whose best plan takes at most `bits` packed bits per weight of
    components, or when every component is treated, whichever comes first. Plans that cannot reach `bits` by further
    treatments are left out. So only `count` and `floor` can end the search above `bits`; a note then reports it. A plan
    is expected to score no better than its subsets, so the worst score of these is passed as its bound. The best plan
    of every depth is recorded in a curve, including the one below the floor.

    Deiseroth et al., "Divergent Token Metrics", NAACL 2024; a width of 10 and the FDT75 are theirs.
    """

    name: ClassVar[str] = "beam"

    width: int = 10
    ranker: str = "fdtm"
    statistic: Statistic = Statistic.p75
    count: int | None = None
    floor: float | None = None
    amount: float | None = None
    bits: float | None = None

    def ranks_by(self) -> tuple[str, ...]:
        return (self.ranker,)

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        check_any(compressors, self.name)
        self._check_numbers()
        if self.bits is not None:
            check_shrinks(compressors, f"schedule.bits={self.bits:g}", files=False)

    def search(self, problem: Problem) -> Search:
        moves, better = list_moves(problem, self.amount), check_metric(problem, self.ranker)
        self._check_numbers()
        depths = self.count or len(problem.components)
        if depths > len(problem.components):
            raise ConfigError(
                f"`schedule.count` must be from 1 to the {len(problem.components)} components, got {self.count}; "
                "leave it out for all"
            )
        storage = None
        if self.bits is not None:
            storage = measure_size_bounds(problem, moves, (yield from SizeRequest(moves.options)), self.bits)
        beam, known, curve = [0], dict[State, float](), list[Waypoint]()
        best, reason, final = dict[str, Treatment](), "", 0
        for _ in range(depths):
            states = [state for state in moves.extend(beam) if not storage or storage.allows(state)]
            if not states:
                reason = "; every further treatment would take more bits"
                break
            plans = [moves.plan(state) for state in states]
            bounds = [moves.bound(state, known, better) for state in states]
            answer = yield from BestRequest(plans, self.ranker, self.width, self.statistic.value, bounds)
            scored = zip(states, answer.scores, strict=True)
            known = {state: self.statistic.read(scores, self.ranker) for state, scores in scored if scores}
            beam = [states[index] for index in answer.chosen]
            value = known[beam[0]]
            curve.append(Waypoint(plans[answer.chosen[0]], self.ranker, value, self.statistic.value))
            if self.floor is not None and not better.sign * (value - self.floor) >= 0:
                reason = f"; with one more component it is {value:z.4g}, worse than the floor of {self.floor:zg}"
                break
            best, final = plans[answer.chosen[0]], beam[0]
            if storage and storage.mean(beam[0]) <= storage.limit:
                reason = f"; they take {storage.mean(beam[0]):.4g} bits per weight"
                break
        notes = [self._describe(problem, best, curve) + reason + "."]
        if storage and storage.mean(final) > storage.limit:
            notes.append(self._describe_missed(storage, final))
        yield from KeepRequest(best, notes=notes, curve=curve, last=True)

    def _check_numbers(self) -> None:
        """Raise ConfigError for numbers that fit no model."""
        if self.width < 1:
            raise ConfigError(f"`schedule.width` must be at least 1, got {self.width}; 1 is greedy")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"`schedule.count` must be at least 1, got {self.count}; leave it out for all components")
        if self.floor is not None and not math.isfinite(self.floor):
            raise ConfigError(f"`schedule.floor` must be finite, got {self.floor:g}; give a value of `schedule.ranker`")
        if self.amount is not None:
            check_amount(self.amount)
        if self.bits is not None:
            check_bits(self.bits)

    def _describe_missed(self, storage: SizeBounds, final: State) -> str:
        """A note that the search ended above `bits`, because of `count` or `floor`."""
        given = [name for name in ("count", "floor") if getattr(self, name) is not None]
        return (
            f"{storage.limit:g} bits per weight were not reached: the search ended at {storage.mean(final):.4g}; "
            f"loosen `schedule.{'` or `.'.join(given)}`, or use schedule=budget."
        )

    def _describe(self, problem: Problem, best: Plan, curve: Sequence[Waypoint]) -> str:
        """A note on the plan that was kept."""
        total = sum(component.parameters for component in problem.components)
        share = sum(component.parameters for component in problem.components if component.name in best) / total
        value = next(
            (f", with {self.ranker} {w.value:z.4g} ({self.statistic.value})" for w in curve if w.plan is best), ""
        )
        return (
            f"The beam treats {len(best)} of {len(problem.components)} components, {share:.1%} of their weights{value}"
        )
