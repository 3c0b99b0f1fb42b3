"""What a run leaves behind, as data: the layout of report.json, the same for every reader of it."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from compressor.contracts import Metric, Score


@dataclass
class MetricRecord:
    """What a metric's numbers mean, so that a report can be read without the plugin: `better` is higher or lower."""

    label: str
    summary: str = ""
    unit: str = ""
    better: str = ""

    @classmethod
    def of(cls, metric: Metric) -> "MetricRecord":
        """From a metric: its `label` if it has one, else its name; the first line of its docstring."""
        summary = (type(metric).__doc__ or "").strip().partition("\n")[0]
        return cls(metric.label or metric.name, summary, metric.unit, metric.better.value)


@dataclass
class CurvePoint:
    """The best plan that a search had found at some point: `share` of the parameters are in the `components` treated.

    `value` is that of the `statistic` of `metric` by which it was the best, on the search prefixes.
    """

    components: int
    share: float
    metric: str
    value: float
    plan: dict[str, Any]
    statistic: str = "mean"


@dataclass
class RoundRecord:
    """One kept plan: the target asked for, the amount reached, its scores on the search prefixes, what it cost.

    `passes` is the cost of the search in forward passes over all search prefixes; keeping and proving come on top.
    `curve` is what the search found on its way, where it says so. `additivity` is the sum of what each treatment alone
    was found to change of the objective, by what all together changed; None where the schedule does not say.
    """

    target: float | None
    amount: float
    scores: dict[str, Score]
    trials: int
    seconds: float
    passes: float = 0.0
    curve: list[CurvePoint] = field(default_factory=list)
    additivity: float | None = None


@dataclass
class ComponentRecord:
    """Where one component ended. Bits count what the exported format stores; packed bits what the compressor needs."""

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
    """The compressed model: amounts and bits are means over all weights of components; bytes are on disk."""

    amount: float
    sparsity: float
    bits_per_weight: float
    packed_bits_per_weight: float
    bytes: int
    scores: dict[str, Score]


@dataclass
class ReferenceRecord:
    """What was scored: shape of the reference, near ties of the base, and how many tokens consistency mended."""

    source: str
    prefixes: int
    prefix_tokens: int
    continuation_tokens: int
    near_ties: int
    mended: int
    perplexity_text: str | None = None


@dataclass
class RunCost:
    """What a run costs: trials, passes and seconds of the search; memory at its peak; bytes in the run's folder.

    Memory is that of the device that the model is on. None is not known. A forecast may be `at_least` what it says.
    """

    trials: int
    passes: float
    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int
    at_least: bool = False


@dataclass
class RunCostRecord:
    """What was forecast before the search, and what it really took."""

    forecast: RunCost
    actual: RunCost | None = None


@dataclass
class VerificationRecord:
    """The saved model against the scored one: `gap` is the largest difference of a logit on so many proof `prefixes`.

    It is at most `tolerance`; 0 is bit for bit. `diverged` prefixes have another FDT, which only near ties can cause.
    """

    prefixes: int
    gap: float
    tolerance: float
    diverged: int
    seconds: float


@dataclass
class FileRecord:
    """A file beside the saved model: its bytes, how many components are packed in it; None was not verified."""

    bytes: int
    packed: int
    verification: VerificationRecord | None = None


@dataclass
class ExportRecord:
    """How the model is saved: the format, how many components are packed in it; None was not verified.

    `gguf` is model.gguf, if there is one.
    """

    format: str
    dtype: str
    packed: int
    verification: VerificationRecord | None = None
    gguf: FileRecord | None = None


@dataclass
class Record:
    """A whole run. `status` is done or failed; `error` is the one line of a failed one."""

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def metric(self, name: str) -> MetricRecord:
        """What is known of a metric; only its name where the run did not say more."""
        return self.metrics.get(name) or MetricRecord(label=name)


def collect_versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    names = (
        "compressor",
        "torch",
        "transformers",
        "numpy",
        "pluggy",
        "hydra-core",
        "safetensors",
        "wandb",
        "compressed-tensors",
        "gguf",
    )
    versions = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


class Timed(Protocol):
    """A record of wall-clock seconds: of each phase, and of all of them."""

    phases: dict[str, float]
    seconds: float


@contextmanager
def time_phase(record: Timed, name: str) -> Iterator[None]:
    """Time what happens inside, also where it fails."""
    began = time.monotonic()
    try:
        yield
    finally:
        record.phases[name] = time.monotonic() - began
        record.seconds = sum(record.phases.values())
