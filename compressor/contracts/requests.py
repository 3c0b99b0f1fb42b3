"""The problem that a schedule gets, its requests, their answers, and the protocol of who answers; torch-free."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.contracts.types import Better, Component, Offer, Plan, Scores, Treatment

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Problem:
    """The information for a schedule: components, offers of compressors, metrics and sizes."""

    components: Sequence[Component]
    offers: Mapping[str, Mapping[str, Offer]]
    """Compressor -> component -> offer, for the configured compressors, in the user's order."""
    better: Mapping[str, Better]
    """Metric -> which values are better, for every configured metric."""
    tokens: int
    """Length M of a continuation."""
    seed: int = 0
    estimable: frozenset[str] = frozenset()
    """Metrics whose changes can be estimated by a backward pass."""
    prefixes: int = 64
    """Number of search prefixes."""
    proof_prefixes: int | None = None
    """Number of proof prefixes; None means as many."""
    stored_bytes: int = 0
    """Size of the base's weight files, including everything that is not a component."""
    packed: bool = False
    """Whether the export can pack weights. If not, its size does not depend on the plan."""
    fixed_bytes: int = 0
    """Upper bound of the size of exported weight files without the components."""


class Prefixes(enum.Enum):
    SEARCH = "search"
    """Prefixes on which the search makes decisions."""
    PROOF = "proof"
    """Other prefixes for the final score. No decision of the search may depend on them."""


class Request(ABC, Generic[Answer]):
    """A request of a schedule. In `Schedule.search`, `answer = yield from request` gives a typed answer.

    `answer = yield request` does the same, but a type checker then does not know the type of the answer.
    """

    def __iter__(self) -> Generator[Request[Any], Any, Answer]:
        answer: Answer = yield self
        return answer

    @abstractmethod
    def ask(self, oracle: Oracle) -> Answer:
        """The answer of `oracle`, by the method for this kind of request."""


@dataclass(frozen=True)
class ScoreRequest(Request[tuple[Scores, ...]]):
    """Score every trial exactly, one at a time, and undo it. Answer: the scores of each trial, in order.

    `start` and `stop` select prefixes; metrics on text are always scored on their whole text.
    """

    trials: Sequence[Plan]
    metrics: Sequence[str]
    prefixes: Prefixes = Prefixes.SEARCH
    start: int = 0
    stop: int | None = None

    def ask(self, oracle: Oracle) -> tuple[Scores, ...]:
        return oracle.score(self)


@dataclass(frozen=True)
class ValuesRequest(Request[tuple[dict[str, NDArray[np.float64]], ...]]):
    """Like `ScoreRequest`, but the answer has the first value per sequence of each metric, `[sequence]`.

    With these values, two trials can be compared prefix by prefix.
    """

    trials: Sequence[Plan]
    metrics: Sequence[str]
    prefixes: Prefixes = Prefixes.SEARCH
    start: int = 0
    stop: int | None = None

    def ask(self, oracle: Oracle) -> tuple[dict[str, NDArray[np.float64]], ...]:
        return oracle.values(self)


@dataclass(frozen=True)
class Best:
    """`chosen` are the indices of the best trials, best first; in a tie the lower index. All of them have scores.

    `scores` are those of each trial on all search prefixes; None if a trial was not measured.
    """

    chosen: tuple[int, ...]
    scores: tuple[Scores | None, ...]


@dataclass(frozen=True)
class BestRequest(Request[Best]):
    """Find the `count` trials with the best statistic of a metric on the search prefixes. Answer: `Best`.

    `statistic` is a field of `Score`. `bounds` has for each trial the best value that the schedule expects of it, or
    None if it has no bound. With bounds, a run may leave trials unmeasured.
    """

    trials: Sequence[Plan]
    metric: str
    count: int
    statistic: str = "mean"
    bounds: Sequence[float | None] = ()

    def ask(self, oracle: Oracle) -> Best:
        return oracle.best(self)


@dataclass(frozen=True)
class Estimate:
    """Estimated effects of the options of one component, on each sequence.

    `changes` `[sequence, option]` are changes of the objective's first value per sequence; `line` is their first-order
    part. `apart` equals `changes`, except that output rows are taken as independent: the sum of the rows' squares
    replaces the square of their sum. This has far less variance, but ignores interactions between rows.
    `compressor.sensitivity.shrinkage` combines the two. `rows` `[row, option]`, if requested, is the change by each row
    alone, averaged over sequences. A measured estimate has only `changes`. `reached` is False if no token of the
    prefixes reached the component (an expert); its numbers then have no meaning.
    """

    changes: NDArray[np.float64]
    rows: NDArray[np.float64] | None = None
    reached: bool = True
    apart: NDArray[np.float64] | None = None
    line: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EstimateRequest(Request[dict[str, Estimate]]):
    """Estimate the effect of each option, one component at a time, with the plan `at` on the other components.

    `objective` is one of `Problem.estimable`, or any metric if the changes are `measured`; then each option is a trial.
    `start` and `stop` select search prefixes. None is the component as it is at the start of the round. Changes are
    relative to the model with the plan `at`. Answer: component -> `Estimate`.
    """

    options: Mapping[str, Sequence[Treatment | None]]
    objective: str
    at: Plan = field(default_factory=dict)
    start: int = 0
    stop: int | None = None
    by_row: bool = False
    measured: bool = False

    def ask(self, oracle: Oracle) -> dict[str, Estimate]:
        return oracle.estimate(self)

    def list_trials(self) -> list[Plan]:
        """The trials of a measured estimate: the plan `at`, then each option of each component."""
        trials = [self.at]
        for name, options in self.options.items():
            others = {other: treatment for other, treatment in self.at.items() if other != name}
            trials += [others if option is None else {**others, name: option} for option in options]
        return trials


@dataclass(frozen=True)
class SizeRequest(Request[dict[str, list[int]]]):
    """Count the stored bits of each option. None is the component as it is now. Answer: component -> bits.

    These are packed bits with scales, or bits in the exported files if `on_disk`: with all that the format adds, and
    dense weights where it cannot pack. `on_disk` assumes that all parts of one matrix have the same option.
    """

    options: Mapping[str, Sequence[Treatment | None]]
    on_disk: bool = False

    def ask(self, oracle: Oracle) -> dict[str, list[int]]:
        return oracle.sizes(self)


@dataclass(frozen=True)
class CountRequest(Request[dict[str, list[int]]]):
    """Count the weights of each component whose importance is at most each threshold; `thresholds` increase.

    Answer: component -> counts, in the order of the thresholds.
    """

    compressor: str
    thresholds: Sequence[float]

    def ask(self, oracle: Oracle) -> dict[str, list[int]]:
        return oracle.counts(self)


@dataclass(frozen=True)
class Waypoint:
    """The best plan at one point of a search, and the value of the `statistic` of the metric that ranked it."""

    plan: Plan
    metric: str
    value: float
    statistic: str = "mean"


@dataclass(frozen=True)
class KeepRequest(Request[dict[str, float]]):
    """End a round: apply the plan to the model permanently. Answer: component -> its amount now."""

    plan: Plan
    target: float | None = None
    notes: Sequence[str] = ()
    """Sentences for the user about the plan."""
    curve: Sequence[Waypoint] = ()
    """The best plans on the way of the search; recorded with the round."""
    most_bytes: int | None = None
    """Upper limit of the size of the exported weight files; a run with larger files fails."""
    singles: Mapping[str, float] = field(default_factory=dict)
    """Metric -> sum over treatments of the change of its first value by the treatment alone, averaged over sequences,
    relative to the start of the round. The run compares it with the change by the whole plan."""
    last: bool = field(default=False, compare=False)
    """True if no round follows. Base weights are then not kept; otherwise the next round starts from them again."""

    def ask(self, oracle: Oracle) -> dict[str, float]:
        return oracle.keep(self)


class Oracle(Protocol):
    """Answers each kind of request. A run measures the answers, a forecast predicts them, a dry run makes them up."""

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]: ...
    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]: ...
    def best(self, request: BestRequest) -> Best: ...
    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]: ...
    def sizes(self, request: SizeRequest) -> dict[str, list[int]]: ...
    def counts(self, request: CountRequest) -> dict[str, list[int]]: ...
    def keep(self, request: KeepRequest) -> dict[str, float]: ...


Asks = Generator[Request[Any], Any, Answer]
"""A generator of requests that receives their answers and returns a result."""
Search = Asks[None]
"""The type that `Schedule.search` returns."""


def compressors_of(treatments: Mapping[str, Sequence[Treatment | None]] | Plan) -> set[str]:
    """The names of the compressors in a plan, or among the options of components."""
    found: set[str] = set()
    for entry in treatments.values():
        options = [entry] if isinstance(entry, Treatment) else entry
        found |= {treatment.compressor for treatment in options if treatment is not None}
    return found
