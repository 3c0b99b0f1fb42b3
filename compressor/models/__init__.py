"""Models: load and check a checkpoint, find its components, read and replace their weights, run forward passes.

Only this package knows architectures.
"""

from compressor.models.input_transforms import Replacement
from compressor.models.model import Model, load_model

__all__ = ["Model", "Replacement", "load_model"]
