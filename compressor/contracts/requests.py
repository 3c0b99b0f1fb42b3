"""What a schedule knows and may ask for, and the answers; plain data, torch-free."""

from __future__ import annotations

import enum
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compressor.contracts.types import Better, Component, Offer, Plan, Scores, Treatment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Problem:
    """What a schedule knows of the model: its components, what may be done to them, how metrics point."""

    components: Sequence[Component]
    offers: Mapping[str, Mapping[str, Offer]]
    """Compressor -> component -> offer, for the compressors of this run, in the order the user gave."""
    better: Mapping[str, Better]
    """Metric -> which way is better, for every metric that is configured."""
    tokens: int
    """Length M of a continuation."""
    seed: int = 0
    estimable: frozenset[str] = frozenset()
    """Metrics whose changes can be estimated."""
    prefixes: int = 64
    """How many there are to search on."""
    stored_bytes: int = 0
    """What the base takes on disk, with all that is not a component."""
    packed: bool = False
    """Does the export store what a compressor packs? If not, its size does not depend on the plan."""
    fixed_bytes: int = 0
    """What the weight files of an export take besides its components, at most."""


class Prefixes(enum.Enum):
    SEARCH = "search"
    """Those that the search decides on."""
    PROOF = "proof"
    """Fresh ones that the search must never have decided on."""


@dataclass(frozen=True)
class ScoreRequest:
    """Score every trial exactly, each on its own, and undo it. Answer: a tuple of `Scores`, in order.

    `start` and `stop` choose prefixes; metrics on text are scored on all of theirs. `by_sequence` asks for the metrics'
    first statistics in place of scores, `[sequence]` each: of two trials they can be compared in pairs.
    """

    trials: Sequence[Plan]
    metrics: Sequence[str]
    prefixes: Prefixes = Prefixes.SEARCH
    start: int = 0
    stop: int | None = None
    by_sequence: bool = False


@dataclass(frozen=True)
class BestRequest:
    """Which `count` of these trials score best by a statistic of a metric on the search prefixes? Answer: `Best`.

    `statistic` is a field of `Score`. `bounds` has for each trial the value that it can at best reach as far as the
    schedule knows, None where it knows nothing: a hint by which the run may leave trials unmeasured.
    """

    trials: Sequence[Plan]
    metric: str
    count: int
    statistic: str = "mean"
    bounds: Sequence[float | None] = ()


@dataclass(frozen=True)
class Best:
    """`chosen` are the indices of the best trials, best first, ties to the lower index; they all have scores.

    `scores` of each trial are on all prefixes, None where it was dropped before that.
    """

    chosen: tuple[int, ...]
    scores: tuple[Scores | None, ...]


@dataclass(frozen=True)
class EstimateRequest:
    """Predict what each of `options` would do to a component, the others as in the plan `at`; nothing is scored.

    `objective` is one of `Problem.estimable`, or any metric where the changes are to be `measured`: then each option is
    a trial. `start` and `stop` choose search prefixes. Treatments are applied to the weights at the start of the round,
    as anywhere, None leaves those, and a change is against the model with `at` on it. Answer: component name ->
    `Estimate`.
    """

    options: Mapping[str, Sequence[Treatment | None]]
    objective: str
    at: Plan = field(default_factory=dict)
    start: int = 0
    stop: int | None = None
    by_row: bool = False
    measured: bool = False


@dataclass(frozen=True)
class Estimate:
    """What options would do to one component, on each sequence and by each option.

    `changes` `[sequence, option]` of the objective's first statistic, `line` being their first-order part. `apart` is
    `changes` with the output rows taken apart, the sum of their squares in place of the square of their sum: far
    steadier, and blind to what rows do together; `compressor.sensitivity.shrinkage` makes one of the two. `rows`
    `[row, option]`, if asked for, is the change by each row alone, a mean over sequences. What was measured has
    `changes` only. `reached` is False where no token of the prefixes came to the component, so that nothing is known
    of it.
    """

    changes: NDArray[np.float64]
    rows: NDArray[np.float64] | None = None
    reached: bool = True
    apart: NDArray[np.float64] | None = None
    line: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class SizeRequest:
    """What does each option store, None as it is now? Answer: component name -> packed bits, scales included.

    `on_disk` they are those of the files that will be exported: all that the format adds, whole weights where it cannot
    pack. Parts of one matrix are then taken to have the same option.
    """

    options: Mapping[str, Sequence[Treatment | None]]
    on_disk: bool = False


@dataclass(frozen=True)
class CountRequest:
    """How many weights of each component have an importance of at most each threshold (sorted)?

    Answer: component name -> list of counts, in order of the thresholds.
    """

    compressor: str
    thresholds: Sequence[float]


@dataclass(frozen=True)
class Waypoint:
    """The best plan that a search had found at some point, and the value by which it was the best.

    It is that of a `statistic` of a metric, a field of `Score`.
    """

    plan: Plan
    metric: str
    value: float
    statistic: str = "mean"


@dataclass(frozen=True)
class KeepRequest:
    """End a round: put the plan on the model for good. Answer: component name -> amount, as it now is."""

    plan: Plan
    target: float | None = None
    notes: Sequence[str] = ()
    """What a person should know of it, a sentence each."""
    curve: Sequence[Waypoint] = ()
    """What the search found on its way, recorded with the round."""
    most_bytes: int | None = None
    """What the exported weight files may take; a run whose files take more fails."""
    singles: Mapping[str, float] = field(default_factory=dict)
    """Metric -> what each treatment alone is known to change of its first statistic, a mean over sequences, added up.

    Each from the start of the round; the run compares that with what the plan changes as a whole.
    """
    last: bool = field(default=False, compare=False)
    """No round follows: weights need not be held for one. In the next round treatments start from the base again."""


Request = ScoreRequest | BestRequest | EstimateRequest | SizeRequest | CountRequest | KeepRequest
Search = Generator[Request, Any, None]


def list_compressors(request: Request) -> set[str]:
    """The compressors whose treatments a request names."""
    match request:
        case ScoreRequest() | BestRequest():
            return {treatment.compressor for plan in request.trials for treatment in plan.values()}
        case EstimateRequest():
            return {treatment.compressor for treatment in request.at.values()} | list_options(request.options)
        case SizeRequest():
            return list_options(request.options)
        case _:
            return set()


def list_options(options: Mapping[str, Sequence[Treatment | None]]) -> set[str]:
    """The compressors among the options of components."""
    return {treatment.compressor for choices in options.values() for treatment in choices if treatment is not None}


def list_measured(request: EstimateRequest) -> list[Plan]:
    """The trials by which estimates are measured: the plan that they start from, then each option of each component."""
    trials = [request.at]
    for name, options in request.options.items():
        others = {other: treatment for other, treatment in request.at.items() if other != name}
        trials += [others if option is None else {**others, name: option} for option in options]
    return trials
