"""Access to the weights of components: read, write, and replace for a while with exact restoration."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from compressor.contracts import Component
from compressor.errors import PlanError, suggest
from compressor.models import architectures
from compressor.models.architectures import Part

EXPERTS = re.compile(r"\bexperts\b")
"""What the path of an expert has, and that of a shared expert, which gets all tokens, has not."""


@dataclass(frozen=True)
class WeightView:
    """A component and where its weight is: the view `part` of the parameter `attribute` of the module `owner`."""

    component: Component
    owner: nn.Module
    attribute: str
    part: Part

    @property
    def parameter(self) -> nn.Parameter:
        """The whole parameter, including parts of other components."""
        parameter: nn.Parameter = getattr(self.owner, self.attribute)
        return parameter

    @property
    def is_expert(self) -> bool:
        """Whether it belongs to an expert, which gets some of the tokens, in an order of its own."""
        inside = self.component.layer is not None  # an embedding, which may be the LM head, is not linear either
        return inside and (not architectures.is_linear(self.owner) or EXPERTS.search(self.component.name) is not None)

    def view(self) -> Tensor:
        """`[out..., in]`: a view into the parameter's storage; its reshape to `[out, in]` is the matrix."""
        return self.part(self.parameter.detach())

    def read(self) -> Tensor:
        """A contiguous copy of the weight, `[out, in]`."""
        with torch.inference_mode(False), torch.no_grad():
            return self.view().clone(memory_format=torch.contiguous_format).reshape(self.component.shape)

    def write(self, weight: Tensor) -> None:
        """Copy `weight` `[out, in]` into the model, cast to its dtype; raises PlanError for another shape."""
        if tuple(weight.shape) != self.component.shape:
            raise PlanError(
                f"the weight of `{self.component.name}` must have the shape {list(self.component.shape)}, "
                f"got {list(weight.shape)}; give it as [out, in]"
            )
        with torch.inference_mode():
            view = self.view()
            view.copy_(weight.detach().reshape(view.shape))
        increment_version(self.parameter)

    def save_bits(self) -> Tensor:
        """A copy of the weight as integers with the same bits, in the shape of `view`."""
        with torch.inference_mode():
            return architectures.see_bits(self.view()).clone()

    def read_bits(self, bits: Tensor) -> Tensor:
        """`[out, in]`: the weight that was saved by `save_bits`."""
        return bits.view(self.view().dtype).reshape(self.component.shape)

    def restore_bits(self, bits: Tensor) -> None:
        """Restore the weight that was saved by `save_bits`, bit for bit, also NaNs."""
        with torch.inference_mode():
            architectures.see_bits(self.view()).copy_(bits)
        increment_version(self.parameter)  # torch does not count writes in inference mode


@contextmanager
def swapped(weight_views: Mapping[str, WeightView], weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Inside, the named components have the given weights `[out, in]`; afterwards they have their own, bit for bit.

    Yields the weights that they had, `[out, in]`. Components may share memory: each is saved just before it is written,
    and they are restored in reverse order.
    """
    chosen = [(find_weight_view(weight_views, name), weight) for name, weight in weights.items()]
    saved: list[tuple[WeightView, Tensor]] = []
    try:
        for weight_view, weight in chosen:
            saved.append((weight_view, weight_view.save_bits()))
            weight_view.write(weight)
        yield {weight_view.component.name: weight_view.read_bits(bits) for weight_view, bits in saved}
    finally:
        for weight_view, bits in reversed(saved):
            weight_view.restore_bits(bits)


def find_weight_view(weight_views: Mapping[str, WeightView], name: str) -> WeightView:
    """The component of that name; raises PlanError with similar names."""
    if name not in weight_views:
        raise PlanError(f"the model has no component `{name}`; {suggest(name, weight_views)}")
    return weight_views[name]
