"""Value types that all stages exchange; plain data, torch-free, comparable and printable."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from compressor.errors import PlanError


class Reads(enum.Flag):
    """The outputs of a forward pass that a metric reads. The engine computes nothing else."""

    LEADING = enum.auto()
    """Number of leading positions at which the reference token is the most likely one, `[sequence]`."""
    PREDICTED = enum.auto()
    """The most likely token, `[sequence, position]`."""
    LOGITS = enum.auto()
    """The logits at ids that the metric chooses, and the base's margins over its runners-up."""
    REFERENCE = enum.auto()
    """The log-probability of the reference token, `[sequence, position]`."""
    DISTRIBUTION = enum.auto()
    """All log-probabilities, `[sequence, position, vocabulary]`, of candidate and base."""
    BASE = LOGITS | DISTRIBUTION
    """Those that need outputs of the base too."""


class Better(enum.Enum):
    HIGHER = "higher"
    LOWER = "lower"

    @property
    def sign(self) -> float:
        """+1 or -1: a larger `sign * value` is always better."""
        return 1.0 if self is Better.HIGHER else -1.0


@dataclass(frozen=True)
class Component:
    """One weight matrix of the model, `[out, in]` however the checkpoint stores it.

    `kind` is query, key, value, output, gate, up, down, fc_in or fc_out (else the module's own name). `layer` is None
    outside the decoder layers. `stored_bits` are the bits of one weight in the checkpoint on disk. `input_group` is the
    number of neighbouring input columns that belong together: in the output projection of an attention those of the
    heads that share a key and a value (of one head, if none share), else 1.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, int]
    stored_bits: int
    input_group: int = 1

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


class NoLevels(tuple[float, ...]):
    """The levels of an offer that is a range. An empty tuple that a plugin gives offers nothing, which is a mistake."""


@dataclass(frozen=True)
class Offer:
    """The amounts that a compressor offers for a component: fixed `levels`, or every amount in [low, high].

    With `by_row`, each output row can also have its own amount.
    """

    levels: tuple[float, ...] = NoLevels()
    low: float = 0.0
    high: float = 1.0
    by_row: bool = False

    TOLERANCE = 1e-6

    @property
    def is_range(self) -> bool:
        return not self.levels

    @property
    def largest(self) -> float:
        return self.high if self.is_range else max(self.levels)

    def contains(self, amount: float) -> bool:
        if self.is_range:
            return self.low - self.TOLERANCE <= amount <= self.high + self.TOLERANCE
        return any(abs(amount - level) <= self.TOLERANCE for level in self.levels)

    def require(self, amount: float, compressor: str, component: Component) -> None:
        """Raise PlanError if `amount` is not offered; `compressor` and `component` are for the message."""
        if not self.contains(amount):
            raise PlanError(
                f"`{compressor}` offers {self} for `{component.name}`, got {amount:zg}; ask for one of these"
            )

    def require_rows(self, amounts: Sequence[float], compressor: str, component: Component) -> None:
        """Like `require`, for one amount for each output row."""
        rows = component.shape[0]
        if not self.by_row:
            raise PlanError(f"`{compressor}` takes one amount per matrix; give `{component.name}` no rows")
        if len(amounts) != rows:
            raise PlanError(
                f"`{component.name}` has {rows} output rows, got {len(amounts)} amounts for `{compressor}`; "
                "give every row one"
            )
        for amount in dict.fromkeys(amounts):
            self.require(amount, compressor, component)

    def __str__(self) -> str:
        if self.is_range:
            return f"any amount in [{self.low:zg}, {self.high:zg}]"
        return "the amounts " + ", ".join(f"{level:zg}" for level in sorted(self.levels))


@dataclass(frozen=True)
class Treatment:
    """A compressor, the amount (cumulative, in [0, 1]) and options of the compressor.

    `options` are the compressor's fields; empty means those of this run. `rows` are the amounts of the output rows, if
    each has its own; their mean is `amount`.
    """

    compressor: str
    amount: float
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for amount in (self.amount, *(self.rows or ())):
            if not (math.isfinite(amount) and 0.0 <= amount <= 1.0):
                raise PlanError(
                    f"`amount` of {self.compressor} must be in [0, 1], got {amount!r}; "
                    "give the share of bits to take away"
                )
        if self.rows is not None and abs(sum(self.rows) - self.amount * len(self.rows)) > 1e-6 * len(self.rows):
            mean = sum(self.rows) / max(1, len(self.rows))
            raise PlanError(
                f"`amount` of {self.compressor} must be the mean {mean:zg} of its rows, got {self.amount:zg}; give that"
            )

    def __hash__(self) -> int:
        """Without `options`, because a mapping cannot be hashed."""
        return hash((self.compressor, self.amount, self.rows))


Plan = Mapping[str, Treatment]
"""Component name -> treatment; other components stay unchanged."""


@dataclass(frozen=True)
class Score:
    """One metric over n sequences: its statistics and bootstrap 95 % intervals of the mean and of the 75th percentile.

    If a metric is not a mean over sequences, `mean` is its value over all of them.
    """

    mean: float
    median: float
    p25: float
    p75: float
    min: float
    max: float
    low: float
    high: float
    p75_low: float
    p75_high: float
    n: int

    def statistic(self, name: str) -> float:
        return float(getattr(self, name))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


Scores = Mapping[str, Score]
"""Metric name -> score."""
