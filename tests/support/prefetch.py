"""The prefetch of layers as on a GPU, in ordinary memory."""

from __future__ import annotations

import torch

from compressor.models import Model
from compressor.models.components import find_layers
from compressor.models.layer_prefetch import LayerPrefetch

CPU = torch.device("cpu")


def settle(model: Model) -> LayerPrefetch:
    """As on a GPU, but that the device is ordinary memory."""
    assert model.mapped_weights is not None
    return LayerPrefetch(model.network, find_layers(model.network)[1], CPU, model.mapped_weights.release)
