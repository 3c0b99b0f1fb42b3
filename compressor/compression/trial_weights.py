"""Computes the weights of trials, and caches those that take long to compute."""

from collections.abc import Iterable

from compressor.compression.apply import Treatments, make_replacement
from compressor.compression.checked_weight import CheckedWeight
from compressor.contracts import Plan, Treatment
from compressor.models import Model, Replacement


class TrialWeights:
    """Computes the weight of a component after a treatment, from the model at the time of the call.

    Weights that need calibration data take long to compute, so they are cached in compressed form, up to `most_bytes`.
    They depend on the model at calibration time: call `forget` when a plan was kept.
    """

    def __init__(self, model: Model, treatments: Treatments, most_bytes: int) -> None:
        self.model, self.treatments, self.most_bytes = model, treatments, most_bytes
        self._made: dict[tuple[str, Treatment], CheckedWeight] = {}
        self._held_bits = 0

    def make(self, component: str, treatment: Treatment) -> Replacement:
        """The weight `[out, in]` of the component after the treatment, and its input transform."""
        compressed = self._made.get((component, treatment))
        if compressed is None:
            compressed = self.treatments.compress_one(self.model, component, treatment)
            # Treatments by row are hardly ever equal, so they are not cached.
            if treatment.rows is None and self.treatments.resolve(treatment).needs:
                self._remember(component, treatment, compressed)
        return make_replacement(compressed)

    def prepare(self, plans: Iterable[Plan]) -> None:
        """Compute the weights of these plans now and cache them, so that scoring does not wait for them."""
        for plan in plans:
            for component, treatment in plan.items():
                if (component, treatment) not in self._made:
                    self._remember(component, treatment, self.treatments.compress_one(self.model, component, treatment))

    def forget(self) -> None:
        """Empty the cache."""
        self._made.clear()
        self._held_bits = 0

    def _remember(self, component: str, treatment: Treatment, compressed: CheckedWeight) -> None:
        """Cache the weight, unless the limit would be exceeded."""
        if self._held_bits + compressed.bits <= 8 * self.most_bytes:
            self._made[component, treatment] = compressed
            self._held_bits += compressed.bits
