"""Compress language models by divergent token metrics."""

from typing import TYPE_CHECKING

from compressor.hookspecs import hookimpl

if TYPE_CHECKING:
    from compressor.export.loading.load import load
else:

    def __getattr__(name: str) -> object:
        """`load` comes when it is asked for: torch and transformers with it."""
        if name == "load":
            from compressor.export.loading.load import load

            return load
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl", "load"]
