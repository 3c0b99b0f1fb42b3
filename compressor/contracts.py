"""The three contracts: Metric, Compressor, Schedule. A method class is a dataclass; its fields are its parameters.

Nothing here imports torch: plugin modules are imported for `--help` and for schedules that never see a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import PlanError
from compressor.grids import Grid
from compressor.requests import (
    Best,
    BestRequest,
    CountRequest,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Prefixes,
    Problem,
    Request,
    ScoreRequest,
    Search,
    SizeRequest,
    Waypoint,
)
from compressor.values import Better, Component, Offer, Reads, Scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator as RandomGenerator
    from torch import Tensor

    from compressor.readout import Readout


@dataclass(frozen=True)
class TextWindows:
    """Natural text that a metric wants to be scored on, in windows of at most `window` tokens moved by `stride`.

    None leaves the choice to the run: its own text (or sequences sampled from the base), the model's context.
    `tokens` bounds how many are scored.
    """

    path: str | None = None
    window: int | None = None
    stride: int | None = None
    tokens: int | None = None


class Metric(ABC):
    """How far a candidate is from the base. One forward pass -> statistics per sequence -> one value over many."""

    name: ClassVar[str]
    reads: ClassVar[Reads]
    better: ClassVar[Better]
    unit: ClassVar[str] = ""
    label: ClassVar[str] = ""
    """What tables call it; empty means its name."""

    @abstractmethod
    def statistics(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence, statistic]` of the candidate on some sequences; pure, and independent between sequences.

        On text windows `base` is the candidate itself: the base is not run there.
        """

    def aggregate(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value over many sequences: `[..., sequence, statistic]` -> `[...]`; by default the mean of the first."""
        mean: NDArray[np.float64] = statistics[..., 0].mean(axis=-1)
        return mean

    def value_range(self, tokens: int) -> tuple[float, float] | None:
        """The least and the largest value of a sequence with a continuation of `tokens`, if `aggregate` is their mean.

        None where there are no such limits, or it is not. Bounds on the mean of all prefixes then need no assumption.
        """
        return None

    def text(self) -> TextWindows | None:
        """None to be scored on the base's continuations, else the text to be scored on."""
        return None


class EstimableMetric(Metric):
    """A metric of which one backward pass tells what any small change of the weights would do.

    It speaks of the first statistic of a sequence, v. With θ the weights and Δ their change,

        v(θ + Δ) ≈ v(θ) + ⟨∂ value/∂θ, Δ⟩ + E⟨∂ probe/∂θ, Δ⟩²

    where `probe` is random. The sum over components of such terms is what a schedule minimises, so `aggregate` must not
    decrease with the mean of v, which must be 0 for the base.
    """

    @abstractmethod
    def value(self, candidate: Readout, base: Readout) -> Tensor:
        """`[sequence]`: v, differentiable in the candidate's logits."""

    @abstractmethod
    def probe(self, candidate: Readout, base: Readout, generator: RandomGenerator) -> Tensor:
        """`[sequence]`: differentiable in the candidate's logits; all randomness from `generator` (on the CPU)."""


@dataclass(frozen=True)
class Context:
    """What a compressor may know besides the weight: its component, a seed, and the statistics it `needs`.

    `statistics` are of the component's inputs x_t `[in]`, one for each token t of the search prefixes and of what the
    base said after them, in the model as it stood when they were gathered. They are on the weight's device, and are not
    to be changed, for components share them:

    - `hessian` `[in, in]` float32: Σ_t x_t x_tᵀ / n, the second moment;
    - `absmax` `[in]` float32: max_t |x_t|;
    - `tokens` `[]` int64: n, how many tokens came to the component. An expert that none reached has 0, and zeros.
    """

    component: Component
    seed: int = 0
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


class CompressedWeight(ABC):
    """A weight after compression, in the form in which it is stored."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The value `[out, in]` that the matrix product uses, in the dtype of the weight that was given."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of all packed tensors, scales included."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The packed tensors, by the suffix that names them."""

    @property
    def grid(self) -> Grid | None:
        """The weight as integers, if it is nothing else: then an export can pack it. None leaves it dense there."""
        return None


class Compressor(ABC):
    """Takes bits away from one weight matrix. A pure function of weight, amount and context."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Names of calibration statistics, of those that `Context` lists."""
    sequential: bool = False
    """Are statistics to be gathered anew for each layer, when what lies below is compressed? When a plan is kept only:
    trials are compressed by the statistics of the model as it stands."""

    @abstractmethod
    def offer(self, component: Component) -> Offer:
        """The amounts that can be asked for; raises ConfigError where an option does not fit."""

    @abstractmethod
    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        """Compress `weight` `[out, in]`, which must not be changed; `amount` is one that `offer` contains."""

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[CompressedWeight]:
        """`compress` at each of the amounts, one after the other; override it where they can share work, say a sort."""
        return (self.compress(weight, amount, context) for amount in amounts)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        """As `compress`, with an amount of its own for every output row; only where the offer is `by_row`."""
        raise PlanError(f"`{self.name}` takes one amount per matrix; give `{context.component.name}` no rows")

    def importance(self, weight: Tensor, context: Context) -> Tensor | None:
        """`[out, in]`, smallest goes first, comparable between components; None if not a pruner of single weights."""
        return None


class Schedule(ABC):
    """Decides what to try and what to keep. Torch-free; all randomness from `problem.seed`.

    A schedule is written as a generator: it yields requests and receives their answers. `Dialogue` turns that into
    ask and tell, and, as a search is a pure function of the problem and the answers, its state is the answers so far.
    """

    name: ClassVar[str]
    repeats: ClassVar[bool] = False
    """Does it do what was decided elsewhere? It then gets every component as it is, even if some are fused."""

    @abstractmethod
    def search(self, problem: Problem) -> Search:
        """Yield requests until done; raises ConfigError before the first one where options do not fit the problem."""

    def ranks_by(self) -> Sequence[str]:
        """Metrics that the search itself asks for, so that they are configured even if nobody wants them reported."""
        return ()


class Dialogue:
    """Ask and tell: `propose` gives the open request (None when done), `tell` answers it.

    >>> dialogue = Dialogue(schedule, problem)
    >>> while (request := dialogue.propose()) is not None:
    ...     dialogue.tell(answer(request))
    """

    def __init__(self, schedule: Schedule, problem: Problem, answers: Sequence[Any] = ()) -> None:
        self.answers: list[Any] = []
        self._search = schedule.search(problem)
        self._request: Request | None = next(self._search, None)
        for answer in answers:
            self.tell(answer)

    def propose(self) -> Request | None:
        return self._request

    def tell(self, answer: Any) -> None:  # noqa: ANN401 - each request says what its answer is
        if self._request is None:
            raise RuntimeError("the schedule is done and takes no more answers")
        self.answers.append(answer)
        try:
            self._request = self._search.send(answer)
        except StopIteration:
            self._request = None


__all__ = [
    "Best",
    "BestRequest",
    "Better",
    "CompressedWeight",
    "Compressor",
    "Context",
    "CountRequest",
    "Dialogue",
    "EstimableMetric",
    "Estimate",
    "EstimateRequest",
    "Grid",
    "KeepRequest",
    "Metric",
    "Prefixes",
    "Problem",
    "Reads",
    "Request",
    "Schedule",
    "ScoreRequest",
    "Scores",
    "Search",
    "SizeRequest",
    "TextWindows",
    "Waypoint",
]
