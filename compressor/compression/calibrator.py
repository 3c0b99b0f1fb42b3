"""Gathers calibration data when compressors need it, and only what they need."""

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
    """Keeps `treatments.calibration` up to date for the model as it stands.

    `reference` gives what is read to calibrate; it may be built after this object. `on_passes` is told how many forward
    passes over all search prefixes each gathering took. `memory` limits what is gathered at once.
    """

    model: Model
    treatments: Treatments
    reference: Callable[[], Reference]
    progress: Progress
    on_passes: Callable[[float], None]
    memory: MemoryBudget = field(default_factory=MemoryBudget)

    def prepare(self, compressors: Iterable[str]) -> None:
        """Gather what compressors of these names need of all components, unless it is known.

        Call it where no trial is on the model.
        """
        needs, before = self.treatments.find_needs(compressors), self.treatments.calibration
        known = frozenset[str]() if before is None else before.names
        if needs <= known:
            return
        self.treatments.calibration = None
        self.treatments.calibration = self._gather(self.model.components, needs | known)

    def prepare_layer(self, plan: Plan, last: int | None) -> None:
        """Gather anew for the components of `plan`, without running the layers behind `last`."""
        needs = self.treatments.find_needs(treatment.compressor for treatment in plan.values())
        self.treatments.calibration = self._gather(list(plan), needs, last)

    def forget(self) -> None:
        """Drop the calibration data: the weights that it was gathered with have changed."""
        self.treatments.calibration = None

    @contextmanager
    def prepared_for(self, plan: Plan) -> Iterator[None]:
        """Inside, there is what the plan needs, of its components only; that costs less than for all components."""
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
