"""The kept plan: applies treatments to the model permanently, and holds the stored bits of treated components."""

import math
from dataclasses import dataclass, field

from compressor.compression.apply import Treatments, check_names, make_replacement
from compressor.compression.calibrator import Calibrator
from compressor.compression.trial_weights import TrialWeights
from compressor.contracts import Plan, QuantizedMatrix, SizeRequest, Treatment
from compressor.export import FileSizes
from compressor.models import Model


@dataclass
class AppliedPlan:
    """`kept` is the plan on the model. `packed_bits` and `quantized` have entries for the components that it treats.

    `files` computes the sizes of exported files.
    """

    model: Model
    treatments: Treatments
    calibrator: Calibrator
    trial_weights: TrialWeights
    files: FileSizes
    kept: dict[str, Treatment] = field(default_factory=dict)
    packed_bits: dict[str, int] = field(default_factory=dict)
    quantized: dict[str, QuantizedMatrix | None] = field(default_factory=dict)

    def apply(self, plan: Plan, is_last: bool) -> None:
        """Apply a plan to the model. Unless it is the last, base weights are kept for treatments of later rounds.

        Treatments that are not sequential are applied first, with calibration data of the current model. The others
        follow layer by layer, with calibration data from the model in which all earlier layers are compressed.
        """
        check_names(self.model, plan)
        if not is_last:
            self.model.hold(plan)
        components = self.model.components
        at_once: dict[str, Treatment] = {}
        by_layer: dict[int | None, dict[str, Treatment]] = {}
        for name, treatment in plan.items():
            is_sequential = self.treatments.is_sequential(treatment)
            part = by_layer.setdefault(components[name].layer, {}) if is_sequential else at_once
            part[name] = treatment
        self.calibrator.prepare(treatment.compressor for treatment in at_once.values())
        self._write(at_once)
        for layer in sorted(by_layer, key=lambda layer: math.inf if layer is None else layer):  # outside of layers last
            self.calibrator.prepare_layer(by_layer[layer], layer)
            self._write(by_layer[layer])
        self.calibrator.forget()
        self.trial_weights.forget()
        if is_last:
            self.model.held.clear()
        self.kept.update(plan)

    def end_training(self, is_last: bool) -> None:
        """The weights on the model were trained: forget what was computed from others."""
        self.calibrator.forget()
        self.trial_weights.forget()
        if is_last:
            self.model.held.clear()

    def count_sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        """Bits of each option, packed or in the exported files."""
        if not request.on_disk:
            return self.treatments.sizes(self.model, request.options, self.packed_bits)
        count = self.files.count_bits
        now = {
            name: count(name, self.model.read(name), self.packed_bits.get(name), self.quantized.get(name))
            for name, options in request.options.items()
            if None in options
        }
        return self.treatments.sizes(
            self.model, request.options, now, lambda name, made: count(name, made.dense(), made.bits, made.quantized)
        )

    def list_quantized(self) -> dict[str, QuantizedMatrix | None]:
        """`quantized` of the components that take fewer bits than dense weights."""
        dense = {name: c.parameters * c.stored_bits for name, c in self.model.components.items()}
        return {name: matrix for name, matrix in self.quantized.items() if self.packed_bits[name] < dense[name]}

    def _write(self, plan: Plan) -> None:
        for name, weight in self.treatments.compress(self.model, plan).items():
            self.model.write(name, make_replacement(weight))
            self.packed_bits[name], self.quantized[name] = weight.bits, weight.quantized and weight.quantized.to("cpu")
