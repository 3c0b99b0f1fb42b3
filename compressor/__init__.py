"""Compress language models by divergent token metrics."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.commands.from_python import forecast, run
    from compressor.contracts import CompressedWeight, Compressor, EstimableMetric, Metric, Recovery, Schedule
    from compressor.errors import CompressorError
    from compressor.export.loading.load import load
    from compressor.hookspecs import hookimpl
else:
    LATER = {
        **dict.fromkeys(
            ["CompressedWeight", "Compressor", "EstimableMetric", "Metric", "Recovery", "Schedule"],
            "compressor.contracts",
        ),
        "CompressorError": "compressor.errors",
        "forecast": "compressor.commands.from_python",
        "hookimpl": "compressor.hookspecs",
        "load": "compressor.export.loading.load",
        "run": "compressor.commands.from_python",
    }

    def __getattr__(name: str) -> object:
        """Imports at the first use: the command line handles signals before it imports anything that takes long."""
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
