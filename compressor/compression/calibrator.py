"""Gathers calibration data when compressors need them, and only those that they need."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from compressor.compression.apply import Treatments
from compressor.compression.calibration import Calibration, gather
from compressor.contracts import Plan
from compressor.data.reference import Reference
from compressor.models import Model
from compressor.progress import Progress, watch
from compressor.resources import MemoryBudget


@dataclass
class Calibrator:
    """Keeps `treatments.calibration` up to date for the current model.

    `reference` returns the sequences for calibration; they may be built after this object. `on_passes` is called with
    the number of forward passes over all search prefixes of each gathering. `memory` limits what is gathered at once.
    """

    model: Model
    treatments: Treatments
    reference: Callable[[], Reference]
    progress: Progress
    on_passes: Callable[[float], None]
    memory: MemoryBudget = field(default_factory=MemoryBudget)

    def prepare(self, compressors: Iterable[str]) -> None:
        """Gather the data that compressors of these names need, for all components, unless they are known.

        Call it while no trial is applied to the model.
        """
        needs, before = self.treatments.find_needs(compressors), self.treatments.calibration
        known = frozenset[str]() if before is None else before.names
        if needs <= known:
            return
        self.treatments.calibration = None
        self.treatments.calibration = self._gather(self.model.components, needs | known)

    def prepare_layer(self, plan: Plan, last: int | None) -> None:
        """Gather again for the components of `plan`, without running the layers after `last`."""
        needs = self.treatments.find_needs(treatment.compressor for treatment in plan.values())
        self.treatments.calibration = self._gather(list(plan), needs, last)

    def forget(self) -> None:
        """Drop the calibration data, because the weights of the model have changed."""
        self.treatments.calibration = None

    @contextmanager
    def prepared_for(self, plan: Plan) -> Iterator[None]:
        """Inside, the data for the plan are available, only for its components, which costs less than for all."""
        needs, before = self.treatments.find_needs(t.compressor for t in plan.values()), self.treatments.calibration
        layers = [self.model.components[name].layer for name in plan]
        last = None if None in layers else max((layer for layer in layers if layer is not None), default=None)
        if needs and (before is None or not needs <= before.names):
            self.treatments.calibration = self._gather(list(plan), needs, last)
        try:
            yield
        finally:
            self.treatments.calibration = before

    def _gather(self, components: Collection[str], names: Collection[str], last: int | None = None) -> Calibration:
        reference = self.reference()
        work = partial(gather, self.model, reference, components, names, last, self.memory)
        found = watch(self.progress, "calibrating", work)
        self.on_passes(found.passes)
        return found
