"""A model: loaded and checked, its components found, read and swapped, run forward. All that knows architectures."""

from compressor.models.input_transforms import Product
from compressor.models.model import Model, load_model
from compressor.models.replay import CannotReplay, Replay

__all__ = ["CannotReplay", "Model", "Product", "Replay", "load_model"]
