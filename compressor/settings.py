"""The typed settings of a run. Hydra composes them from conf/; Python code can also build them."""

import enum
import re
from dataclasses import dataclass, field
from typing import Any

import regex

from compressor.errors import ConfigError


class DType(enum.Enum):
    auto = "auto"
    """float32 on a CPU, the stored dtype on a GPU."""
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Device(enum.Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DataSource(enum.StrEnum):
    self = "self"
    """Sampled from the base model."""
    text = "text"
    hf = "hf"


class CalibrationWeights(enum.Enum):
    """How much each token counts in the second moments of a component's inputs."""

    tokens = "tokens"
    """All tokens count the same."""
    margins = "margins"
    """Tokens count more where the base's two most likely next tokens are close."""


class TrackingBackend(enum.StrEnum):
    wandb = "wandb"
    none = "none"


class TrackingMode(enum.Enum):
    auto = "auto"
    """Online if the user is logged in to W&B, else offline."""
    offline = "offline"
    online = "online"
    disabled = "disabled"


class SweepMode(enum.Enum):
    exact = "exact"
    """Trials share computations; each has the same scores as with its own forward pass."""
    plain = "plain"
    """One forward pass per trial."""
    approximate = "approximate"
    """Like exact, but a comparison measures only trials that may be among the best; a note reports it."""


@dataclass
class ModelSettings:
    """The checkpoint: a local folder or a hub id; `path` None is the embedded tiny model.

    With `stream`, weights stay on disk in their stored dtype and are read when they are used.
    """

    path: str | None = None
    revision: str | None = None
    dtype: DType = DType.auto
    device: Device = Device.auto
    trust_remote_code: bool = False
    stream: bool = False


@dataclass
class DataSettings:
    """Prefixes of `prefix_tokens` (BOS included), each continued by the base by `continuation_tokens`.

    Of texts in rows, `column` holds the text; None is the obvious one. The search decides on `prefixes`. The final
    score is on `proof_prefixes` fresh ones; None means as many. `calibration` weights the tokens of calibration data.
    """

    source: DataSource = DataSource.self
    path: str | None = None
    name: str | None = None
    subset: str | None = None
    split: str = "test"
    column: str | None = None
    prefixes: int = 64
    proof_prefixes: int | None = None
    prefix_tokens: int = 32
    continuation_tokens: int = 64
    seed: int = 0
    calibration: CalibrationWeights = CalibrationWeights.tokens


@dataclass
class ComponentSettings:
    """Regular expressions over component names; empty `include` means every matrix of the decoder layers.

    With `fuse`, one treatment is shared by query, key and value, by gate and up, and by all experts of a layer. None is
    true if `export.format` is compressed-tensors, because servers load these matrices as one.
    """

    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    fuse: bool | None = None


def compile_pattern(key: str, pattern: str) -> regex.Pattern[str]:
    """The regular expression of a setting; raises ConfigError that names the `key`.

    It has the syntax of `re`. The package regex matches it, because it can stop after some time.
    """
    try:
        re.compile(pattern)
        return regex.compile(pattern)
    except (re.error, regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"`{key}` must hold regular expressions, got {pattern!r:.200} ({error}); escape or mend it"
        ) from None


@dataclass
class SweepSettings:
    """How trials are scored. `batch` sequences are in a forward pass; None chooses by vocabulary and length.

    Most other fields are for the approximate mode. A trial is left out if the metric `screen` predicts that it is not
    among the best, or if the scores of smaller plans bound it (`lazy`). `delta` is the probability that the screen
    drops a trial that is among the best. A trial that would improve on the last chosen one by less than `tolerance` of
    its value may be left out too. Of each request, `audit` left-out trials are measured anyway. `racing` was removed;
    the name is accepted with a warning and has no effect.

    With `cache`, estimates of single treatments of the base are kept on disk for later runs.
    """

    mode: SweepMode = SweepMode.exact
    batch: int | None = None
    racing: bool | None = None
    delta: float = 0.05
    lazy: bool = True
    tolerance: float = 0.0
    screen: str | None = None
    audit: int = 2
    cache: bool = True


@dataclass
class ForecastSettings:
    """`check` plans of the forecast curve are scored, to compare the predictions with measurements."""

    check: int = 0


@dataclass
class MemorySettings:
    """Memory that a run may use, on the model's device and on the host: bytes, or text such as 40GiB.

    None means all memory of the machine or of its container. Results do not depend on it.
    """

    device: int | str | None = None
    host: int | str | None = None


@dataclass
class ResumeSettings:
    """How an interrupted run goes on. `accept` names differences from before that are taken; `all` takes every one.

    With `keep`, the state of a run that is done is not removed.
    """

    accept: list[str] = field(default_factory=list)
    keep: bool = False


@dataclass
class TrackingSettings:
    """Where a run is logged, in addition to its folder."""

    backend: TrackingBackend = TrackingBackend.wandb
    mode: TrackingMode = TrackingMode.auto
    project: str = "compressor"


@dataclass
class ExportSettings:
    """The format of the saved model: `auto` packs every weight that compressed-tensors represents exactly.

    `gguf` also writes a GGUF file for llama.cpp. `cut` removes MLP channels and attention heads that add nothing from a
    dense model, where its family allows it. `verify` reloads the saved model in a new process and compares logits.
    """

    format: str = "auto"
    gguf: bool = False
    cut: bool = False
    verify: bool = True

    @property
    def copies(self) -> int:
        """How many times the weights are saved."""
        return 1 + self.gguf


@dataclass
class Settings:
    """All settings of a run. `metric` and `compressor` hold plugin instances by name, `schedule` and `recovery` one.

    Without a `recovery`, there is no training between rounds.
    """

    metric: dict[str, Any]
    compressor: dict[str, Any]
    schedule: Any
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    components: ComponentSettings = field(default_factory=ComponentSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    forecast: ForecastSettings = field(default_factory=ForecastSettings)
    recovery: Any = None
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    resume: ResumeSettings = field(default_factory=ResumeSettings)
    seed: int = 0

    @property
    def fuses(self) -> bool:
        """Whether components that servers load as one matrix share a treatment."""
        return self.export.format == "compressed-tensors" if self.components.fuse is None else self.components.fuse
