"""Scales of quantized components, which are trained while integers and zero points stay."""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.contracts import QuantizedMatrix
from compressor.contracts.quantized import split_groups
from compressor.models.weight_views import WeightView


@dataclass
class TrainedScales:
    """The scales of a component with the weight ŵ = s · (q − z), where s = s₀ · exp(a).

    s₀ are the scales of `matrix`, and the `logarithms` a `[out, group]` in float32 are trained. So an update changes a
    scale by a share of itself, and never its sign. A copy rounded to the dtype of s₀ makes the weight.
    """

    view: WeightView
    matrix: QuantizedMatrix
    logarithms: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.logarithms = torch.zeros_like(self.matrix.scales, dtype=torch.float32)

    def find_matrix(self) -> QuantizedMatrix:
        """The component with its trained scales."""
        scales = self.matrix.scales * self.logarithms.exp()
        return dataclasses.replace(self.matrix, scales=scales.to(self.matrix.scales.dtype))

    def write(self) -> None:
        """Write ŵ into the model."""
        self.view.write(self.find_matrix().dense())

    def compute_gradient(self) -> Tensor | None:
        """∂L/∂a = Σ ŵ · ∂L/∂ŵ over the weights that share a scale, from the gradient of the component's parameter."""
        gradient = self.view.parameter.grad
        if gradient is None:
            return None
        shape = self.view.component.shape
        products = (self.view.view().float() * self.view.part(gradient).float()).reshape(shape)
        return split_groups(products, len(self.logarithms), self.matrix.group).sum(-1)
