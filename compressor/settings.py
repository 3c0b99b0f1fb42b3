"""The settings of a run, typed: Hydra composes them from conf/, Python code may build them by hand."""

import enum
from dataclasses import dataclass, field
from typing import Any


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


class RecoveryMethod(enum.StrEnum):
    none = "none"


class TrackingBackend(enum.StrEnum):
    wandb = "wandb"
    none = "none"


class TrackingMode(enum.Enum):
    auto = "auto"
    """Online when the user is logged in to W&B, else offline."""
    offline = "offline"
    online = "online"
    disabled = "disabled"


class SweepMode(enum.Enum):
    exact = "exact"
    """Trials share what they have in common; each scores as by a forward pass of its own."""
    plain = "plain"
    """One forward pass per trial."""
    approximate = "approximate"
    """As exact, but of trials that are compared only those that may be among the best are measured, and it says so."""


@dataclass
class ModelSettings:
    """Which checkpoint: a local folder or a hub id; `path` None is the embedded tiny model.

    With `stream` the weights stay on disk, in the dtype there, and are read as they are used.
    """

    path: str | None = None
    revision: str | None = None
    dtype: DType = DType.auto
    device: Device = Device.auto
    trust_remote_code: bool = False
    stream: bool = False


@dataclass
class DataSettings:
    """Prefixes of `prefix_tokens` (BOS counted) that the base continues by `continuation_tokens`.

    The search decides on `prefixes`. The final score is on `proof_prefixes` fresh ones, None means as many.
    """

    source: DataSource = DataSource.self
    path: str | None = None
    name: str | None = None
    subset: str | None = None
    split: str = "test"
    prefixes: int = 64
    proof_prefixes: int | None = None
    prefix_tokens: int = 32
    continuation_tokens: int = 64
    seed: int = 0


@dataclass
class ComponentSettings:
    """Regular expressions over component names; empty `include` means every matrix of the decoder layers.

    With `fuse`, query, key and value share a treatment, gate and up share one, and all experts of a layer; None is true
    where the export is asked to pack what servers load as one.
    """

    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    fuse: bool | None = None


@dataclass
class SweepSettings:
    """How trials are scored. `batch` sequences go through the model at once; None chooses by vocabulary and length.

    With `cache`, the effects of single treatments of the base are kept on disk, and another run does not measure them
    again. All else counts in the approximate mode only, which leaves out trials that can hardly be the best:

    - `screen` is a metric whose estimates say which ones, `delta` the probability that it leaves out one of the best;
    - with `lazy`, the scores of smaller plans say which ones;
    - a trial that is better than the last one kept by less than `tolerance` of its value need not be found;
    - `audit` left-out trials of each question are measured all the same, to check;
    - `racing` was removed: the name is accepted and ignored, with a warning.
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
    """`check` plans of the forecast curve are applied, scored and undone, to see whether it holds."""

    check: int = 0


@dataclass
class RecoverySettings:
    """Training between rounds."""

    method: RecoveryMethod = RecoveryMethod.none


@dataclass
class MemorySettings:
    """Memory that a run may use, on the model's device and on the host: bytes, or text such as 40GiB.

    None is what the machine has, or what its container allows. No result depends on it.
    """

    device: int | str | None = None
    host: int | str | None = None


@dataclass
class TrackingSettings:
    """Where a run is logged besides its folder."""

    backend: TrackingBackend = TrackingBackend.wandb
    mode: TrackingMode = TrackingMode.auto
    project: str = "compressor"


@dataclass
class ExportSettings:
    """The form in which the compressed model is saved: `auto` packs what the format holds exactly.

    `gguf` writes it as one more file, for llama.cpp. `verify` loads what is saved again in a new process, and compares.
    """

    format: str = "auto"
    gguf: bool = False
    verify: bool = True


@dataclass
class Settings:
    """Everything a run needs; `metric`, `compressor` and `schedule` hold plugin instances by name."""

    metric: dict[str, Any]
    compressor: dict[str, Any]
    schedule: Any
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    components: ComponentSettings = field(default_factory=ComponentSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    forecast: ForecastSettings = field(default_factory=ForecastSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    seed: int = 0

    @property
    def fuses(self) -> bool:
        """Do components that servers load as one share a treatment?"""
        return self.export.format == "compressed-tensors" if self.components.fuse is None else self.components.fuse
