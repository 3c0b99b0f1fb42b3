"""What all trainings of a run have at hand: the model, texts, and where they report and stop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from compressor.artifacts.run_record import TrainingPoint
from compressor.data.reference import Reference
from compressor.models import Model, load_model
from compressor.progress import Progress, Silent
from compressor.recovery.processes import Processes
from compressor.resources import MemoryBudget
from compressor.settings import ComponentSettings, ModelSettings


@dataclass
class Stopping:
    """Whether the run is stopping, and what it does where it may stop."""

    is_stopping: Callable[[], bool] = lambda: False
    after_block: Callable[[], None] = lambda: None


@dataclass
class TrainingMeans:
    """The compressed `model`, and all that trains it.

    `windows` `[window, position]` are texts for training, None without any; the search prefixes of `reference` give
    the inputs for least squares. With the `settings` of the model, the base is loaded anew. `on_point` is called for
    each point of a training.
    """

    model: Model
    windows: Tensor | None
    reference: Reference
    settings: tuple[ModelSettings, ComponentSettings]
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    on_point: Callable[[TrainingPoint], None] = lambda point: None
    stopping: Stopping = field(default_factory=Stopping)
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    processes: Processes = field(default_factory=Processes)

    @cached_property
    def base(self) -> Model:
        return load_model(*self.settings)

    @property
    def texts(self) -> Tensor:
        """The windows for training."""
        assert self.windows is not None, "a recovery that trains has texts"
        return self.windows
