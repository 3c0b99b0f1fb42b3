"""Masks of pruned weights, one bit for each weight, which keep these weights exactly zero while others are trained."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.models import Model
from compressor.models.weight_views import WeightView

BITS = 8


@dataclass(frozen=True)
class PackedMask:
    """A tensor of truth values of any `shape`, as bits of `packed` uint8."""

    packed: Tensor
    shape: torch.Size

    @staticmethod
    def of(mask: Tensor) -> "PackedMask":
        flat = nn.functional.pad(mask.flatten(), (0, -mask.numel() % BITS))
        places = torch.arange(BITS, dtype=torch.uint8, device=mask.device)
        return PackedMask((flat.view(-1, BITS).to(torch.uint8) << places).sum(-1, dtype=torch.uint8), mask.shape)

    def unpack(self) -> Tensor:
        """The mask, of dtype bool."""
        places = torch.arange(BITS, dtype=torch.uint8, device=self.packed.device)
        bits = (self.packed[:, None] >> places) & 1
        return bits.view(-1)[: self.shape.numel()].view(self.shape).bool()


@dataclass(frozen=True)
class Masks:
    """The pruned weights of components, which are zero when the masks are made."""

    views: Mapping[str, WeightView]
    packed: Mapping[str, PackedMask]

    @staticmethod
    def of(model: Model, names: Collection[str]) -> "Masks":
        """Masks of all weights of these components that are zero now."""
        views = {name: model.weight_views[name] for name in names}
        return Masks(views, {name: PackedMask.of(view.view() == 0) for name, view in views.items()})

    @torch.no_grad()
    def zero_weights(self) -> None:
        """Set pruned weights to zero."""
        for name, view in self.views.items():
            view.view().masked_fill_(self.packed[name].unpack(), 0)

    @torch.no_grad()
    def zero_in(self, tensors: Mapping[nn.Parameter, Tensor]) -> None:
        """Set the places of pruned weights to zero in tensors that belong to parameters, such as their gradients."""
        for name, view in self.views.items():
            if (tensor := tensors.get(view.parameter)) is not None:
                view.part(tensor).masked_fill_(self.packed[name].unpack(), 0)
