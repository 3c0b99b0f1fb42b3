"""The data of a run: the layout of report.json."""

import functools
import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from compressor.contracts import Metric, Score
from compressor.contracts.declarations import summarize_class

PACKAGES = "compressor torch transformers numpy pluggy hydra-core safetensors wandb compressed-tensors gguf"
"""Those that can change a result."""
VERIFIED, NOT_VERIFIED = "verified", "not verified"


@dataclass
class MetricRecord:
    """Description of a metric, so that a report can be read without the plugin; `better` is higher or lower."""

    label: str
    summary: str = ""
    unit: str = ""
    better: str = ""

    @classmethod
    def of(cls, metric: Metric) -> "MetricRecord":
        """The metric's label (or its name), the first line of its docstring, its unit and direction."""
        return cls(metric.label or metric.name, summarize_class(type(metric)), metric.unit, metric.better.value)


@dataclass
class CurvePoint:
    """The best plan at one point of a search. It treats `components` components with a `share` of all parameters.

    `value` is the `statistic` of `metric` that ranked it, on the search prefixes.
    """

    components: int
    share: float
    metric: str
    value: float
    plan: dict[str, Any]
    statistic: str = "mean"


@dataclass
class TrainingPoint:
    """Training up to a `step` of a `stage`: the mean loss since the point before, and how fast it was."""

    stage: str
    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float


@dataclass
class RecoveryRecord:
    """The training after a round: `before` are the scores of the round's plan without it, on the search prefixes.

    It is kept unless every metric got worse by it.
    """

    name: str
    seconds: float
    before: dict[str, Score]
    points: list[TrainingPoint] = field(default_factory=list)
    is_kept: bool = True


@dataclass
class RoundRecord:
    """One kept plan: its target, the amount reached, its scores on the search prefixes, and the cost of the search.

    `passes` is the cost in forward passes over all search prefixes, without applying the plan and the final score.
    `curve` has the best plans on the way, if the schedule gives them. `additivity` is the sum of the changes of the
    objective by single treatments, divided by the change by the whole plan; None if the schedule does not give it.
    """

    target: float | None
    amount: float
    scores: dict[str, Score]
    trials: int
    seconds: float
    passes: float = 0.0
    curve: list[CurvePoint] = field(default_factory=list)
    additivity: float | None = None
    recovery: RecoveryRecord | None = None


@dataclass
class ComponentRecord:
    """Final state of a component. `bits_per_weight` are those of the exported files, packed bits of the compressor."""

    kind: str
    layer: int | None
    shape: tuple[int, int]
    parameters: int
    compressor: str | None
    amount: float
    sparsity: float
    bits_per_weight: float
    packed_bits_per_weight: float


@dataclass
class FinalRecord:
    """The compressed model. Amounts and bits are means over all weights of components; `bytes` are on disk.

    A pruned model has two more sizes: what the weight files would take with a bitmask for each pruned matrix, and
    what zstd makes of them, measured.
    """

    amount: float
    sparsity: float
    bits_per_weight: float
    packed_bits_per_weight: float
    bytes: int
    scores: dict[str, Score]
    bitmask_bytes: int | None = None
    zstd_bytes: int | None = None


@dataclass
class ReferenceRecord:
    """The reference: its shape, near ties of the base, and how many tokens were changed to make it consistent."""

    source: str
    prefixes: int
    prefix_tokens: int
    continuation_tokens: int
    near_ties: int
    mended: int
    perplexity_text: str | None = None


@dataclass
class RunCost:
    """The cost of a run: trials, passes and seconds of the search, peak memory, and bytes in the run's folder.

    Memory is that of the model's device. None means not known. With `at_least`, a forecast is a lower bound.
    """

    trials: int
    passes: float
    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int
    at_least: bool = False


@dataclass
class RunCostRecord:
    """The cost that was forecast before the search, and the actual cost."""

    forecast: RunCost
    actual: RunCost | None = None


@dataclass
class VerificationRecord:
    """The saved model compared with the scored one: `gap` is the largest difference of a logit on proof `prefixes`.

    It is at most `tolerance`; 0 means equal bit for bit. `diverged` prefixes have another FDT, because of near ties.
    The `state` is `verified` or `not verified`: the check could not be made, for this `reason`, and has no numbers.
    """

    prefixes: int
    gap: float
    tolerance: float
    diverged: int
    seconds: float
    state: str = VERIFIED
    reason: str = ""


@dataclass
class FileRecord:
    """A file beside the saved model: its bytes, and how many components are packed; None: no check was wanted."""

    bytes: int
    packed: int
    verification: VerificationRecord | None = None


@dataclass
class ExportRecord:
    """The saved model: its format, and how many components are packed.

    `verification` is None if no check was wanted. `gguf` is model.gguf, if there is one.
    """

    format: str
    dtype: str
    packed: int
    verification: VerificationRecord | None = None
    gguf: FileRecord | None = None


@dataclass
class Record:
    """A whole run. `status` is done or failed; `error` is the one line of a failed one.

    `facts` are hashes of what the result depends on besides the configuration and the versions: code, weights, texts,
    and the plan that was read.
    """

    status: str
    config: dict[str, Any]
    versions: dict[str, str]
    command: str = "compressor"
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    noise_floor: float | None = None
    reference: ReferenceRecord | None = None
    metrics: dict[str, MetricRecord] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    expense: RunCostRecord | None = None
    base: dict[str, Any] = field(default_factory=dict)
    final: FinalRecord | None = None
    export: ExportRecord | None = None
    components: dict[str, ComponentRecord] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def metric(self, name: str) -> MetricRecord:
        """The description of a metric; only its name if the record has no description."""
        return self.metrics.get(name) or MetricRecord(label=name)


def collect_versions() -> dict[str, str]:
    """Versions of all packages that can change a result."""
    found = {name: find_version(name) for name in PACKAGES.split()}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


@functools.cache
def find_version(package: str) -> str | None:
    """The version of an installed package, read once in a process; None if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


class Timed(Protocol):
    """A record with wall-clock seconds of each phase and of all phases."""

    phases: dict[str, float]
    seconds: float


@contextmanager
def time_phase(record: Timed, name: str) -> Iterator[None]:
    """Record the time that is spent inside, also if it fails."""
    began = time.monotonic()
    try:
        yield
    finally:
        record.phases[name] = time.monotonic() - began
        record.seconds = sum(record.phases.values())
