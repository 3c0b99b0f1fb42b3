"""Compress language models by divergent token metrics."""

from typing import TYPE_CHECKING

from compressor.contracts import CompressedWeight, Compressor, EstimableMetric, Metric, Recovery, Schedule
from compressor.errors import CompressorError
from compressor.hookspecs import hookimpl

if TYPE_CHECKING:
    from compressor.commands.from_python import forecast, run
    from compressor.export.loading.load import load
else:
    LATER = {
        "forecast": "compressor.commands.from_python",
        "load": "compressor.export.loading.load",
        "run": "compressor.commands.from_python",
    }

    def __getattr__(name: str) -> object:
        """Imports functions that need torch, transformers or hydra at their first use."""
        if name not in LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(LATER[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *LATER})


__version__ = "0.1.0"
__all__ = [
    "CompressedWeight",
    "Compressor",
    "CompressorError",
    "EstimableMetric",
    "Metric",
    "Recovery",
    "Schedule",
    "__version__",
    "forecast",
    "hookimpl",
    "load",
    "run",
]
