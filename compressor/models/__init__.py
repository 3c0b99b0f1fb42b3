"""A model: loaded and checked, its components found, read and swapped, run forward. All that knows architectures."""

from compressor.models.input_transforms import Replacement
from compressor.models.model import Model, load_model

__all__ = ["Model", "Replacement", "load_model"]
