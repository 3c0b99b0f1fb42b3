"""Compress language models by divergent token metrics."""

from compressor.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]
