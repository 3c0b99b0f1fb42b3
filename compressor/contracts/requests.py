"""What a schedule knows and may ask for, the answers, and the protocol of whoever answers; torch-free."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from compressor.contracts.types import Better, Component, Offer, Plan, Scores, Treatment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Problem:
    """What a schedule knows of the model: its components, what may be done to them, which way metrics are better."""

    components: Sequence[Component]
    offers: Mapping[str, Mapping[str, Offer]]
    """Compressor -> component -> offer, for the compressors of this run, in the order that the user gave."""
    better: Mapping[str, Better]
    """Metric -> which way is better, for every configured metric."""
    tokens: int
    """Length M of a continuation."""
    seed: int = 0
    estimable: frozenset[str] = frozenset()
    """Metrics whose changes can be estimated by a backward pass."""
    prefixes: int = 64
    """How many search prefixes there are."""
    stored_bytes: int = 0
    """Size of the base on disk, with everything that is not a component."""
    packed: bool = False
    """Does the export store what a compressor packs? If not, its size does not depend on the plan."""
    fixed_bytes: int = 0
    """Upper bound of what the exported weight files take besides the components."""


class Prefixes(enum.Enum):
    SEARCH = "search"
    """The search decides on these."""
    PROOF = "proof"
    """Fresh prefixes for the final score. The search must never decide on them."""


class Request(ABC, Generic[Answer]):
    """A question of a schedule. Inside `Schedule.search`, `answer = yield from request` gives an answer of its type.

    `answer = yield request` does the same, and a type checker then knows nothing of the answer.
    """

    def __iter__(self) -> Generator[Request[Any], Any, Answer]:
        answer: Answer = yield self
        return answer

    @abstractmethod
    def ask(self, oracle: Oracle) -> Answer:
        """The answer of `oracle`, by the method for this kind of request."""


@dataclass(frozen=True)
class ScoreRequest(Request[tuple[Scores, ...]]):
    """Score every trial exactly, each on its own, and undo it. Answer: the scores of each trial, in order.

    `start` and `stop` choose prefixes; metrics on text are scored on all of their text.
    """

    trials: Sequence[Plan]
    metrics: Sequence[str]
    prefixes: Prefixes = Prefixes.SEARCH
    start: int = 0
    stop: int | None = None

    def ask(self, oracle: Oracle) -> tuple[Scores, ...]:
        return oracle.score(self)


@dataclass(frozen=True)
class ValuesRequest(Request["tuple[dict[str, NDArray[np.float64]], ...]"]):
    """As `ScoreRequest`, but the answer has for each metric its first value per sequence, `[sequence]`.

    With these, two trials can be compared prefix by prefix.
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
    """`chosen` are the indices of the best trials, best first, ties to the lower index; they all have scores.

    `scores` of each trial are on all search prefixes, None where the trial was not measured.
    """

    chosen: tuple[int, ...]
    scores: tuple[Scores | None, ...]


@dataclass(frozen=True)
class BestRequest(Request[Best]):
    """Which `count` of these trials score best by a statistic of a metric on the search prefixes? Answer: `Best`.

    `statistic` is a field of `Score`. `bounds` has for each trial the best value that it can reach as far as the
    schedule knows, None where it knows nothing. With it a run may leave trials unmeasured.
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
    part. `apart` equals `changes` except that the output rows are taken independently: the sum of the rows' squares
    replaces the square of their sum, which has far less variance and ignores how rows interact.
    `compressor.sensitivity.shrinkage` combines the two. `rows` `[row, option]`, if asked for, is the change by each row
    alone, a mean over sequences. A measured estimate has `changes` only. `reached` is False where no token of the
    prefixes came to the component (an expert), so that nothing is known of it.
    """

    changes: NDArray[np.float64]
    rows: NDArray[np.float64] | None = None
    reached: bool = True
    apart: NDArray[np.float64] | None = None
    line: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EstimateRequest(Request[dict[str, Estimate]]):
    """Estimate what each option would change, one component at a time, with the plan `at` on the others.

    `objective` is one of `Problem.estimable`, or any metric where the changes are to be `measured`: then each option is
    a trial. `start` and `stop` choose search prefixes. Treatments are applied to the weights at the start of the round,
    as everywhere; None is the weight at the start of the round. A change is against the model with `at` on it. Answer:
    component -> `Estimate`.
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
        """The trials by which it is measured: the plan `at`, then each option of each component."""
        trials = [self.at]
        for name, options in self.options.items():
            others = {other: treatment for other, treatment in self.at.items() if other != name}
            trials += [others if option is None else {**others, name: option} for option in options]
        return trials


@dataclass(frozen=True)
class SizeRequest(Request[dict[str, list[int]]]):
    """How many bits does each option store? None is the component as it is now. Answer: component -> bits.

    Packed bits with scales; `on_disk` those of the exported files: everything that the format adds, and whole weights
    where it cannot pack. Parts of one matrix are then taken to have the same option.
    """

    options: Mapping[str, Sequence[Treatment | None]]
    on_disk: bool = False

    def ask(self, oracle: Oracle) -> dict[str, list[int]]:
        return oracle.sizes(self)


@dataclass(frozen=True)
class CountRequest(Request[dict[str, list[int]]]):
    """How many weights of each component have at most each importance? `thresholds` ascend.

    Answer: component -> counts, in the order of the thresholds.
    """

    compressor: str
    thresholds: Sequence[float]

    def ask(self, oracle: Oracle) -> dict[str, list[int]]:
        return oracle.counts(self)


@dataclass(frozen=True)
class Waypoint:
    """The best plan that a search had found at some point, and the `statistic` of the metric by which it was best."""

    plan: Plan
    metric: str
    value: float
    statistic: str = "mean"


@dataclass(frozen=True)
class KeepRequest(Request[dict[str, float]]):
    """End a round: put the plan on the model for good. Answer: component -> its amount now."""

    plan: Plan
    target: float | None = None
    notes: Sequence[str] = ()
    """What a person should know of the plan, one sentence each."""
    curve: Sequence[Waypoint] = ()
    """What the search found on its way; recorded with the round."""
    most_bytes: int | None = None
    """Upper limit of the exported weight files; a run whose files are larger fails."""
    singles: Mapping[str, float] = field(default_factory=dict)
    """Metric -> sum of the changes that each treatment alone makes to its first value per sequence, a mean over
    sequences, each from the start of the round. The run compares it with what the whole plan changes."""
    last: bool = field(default=False, compare=False)
    """No round follows, so the base weights need not be kept for one: every round treats the base's weights anew."""

    def ask(self, oracle: Oracle) -> dict[str, float]:
        return oracle.keep(self)


class Oracle(Protocol):
    """Answers requests. A run measures the answers, a forecast predicts them, a dry run makes them up."""

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        """The scores of each trial, in order."""
        ...

    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        """For each trial, in order: metric -> values per sequence `[sequence]`."""
        ...

    def best(self, request: BestRequest) -> Best:
        """The best trials."""
        ...

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """Component -> the estimated effect of each of its options."""
        ...

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        """Component -> the bits that each of its options stores."""
        ...

    def counts(self, request: CountRequest) -> dict[str, list[int]]:
        """Component -> how many of its weights have at most each importance."""
        ...

    def keep(self, request: KeepRequest) -> dict[str, float]:
        """Component -> its amount, after the plan was put on the model."""
        ...


Asks = Generator[Request[Any], Any, Answer]
"""A generator of requests that receives their answers and returns what it found out."""
Search = Asks[None]
"""What `Schedule.search` returns."""


def compressors_of(treatments: Mapping[str, Sequence[Treatment | None]] | Plan) -> set[str]:
    """The names of the compressors in a plan, or among the options of components."""
    found: set[str] = set()
    for entry in treatments.values():
        options = [entry] if isinstance(entry, Treatment) else entry
        found |= {treatment.compressor for treatment in options if treatment is not None}
    return found
