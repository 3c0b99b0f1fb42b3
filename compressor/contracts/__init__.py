"""The three contracts: Metric, Compressor, Schedule. A method class is a dataclass; its fields are its parameters.

Nothing here imports torch: plugin modules are imported for `--help` and for schedules that never see a tensor.
"""

from compressor.contracts.compressor import CompressedWeight, Compressor, Context, Treat
from compressor.contracts.metric import EstimableMetric, Metric, TextWindows
from compressor.contracts.quantized import Grid, TokenRounding
from compressor.contracts.requests import (
    Best,
    BestRequest,
    CountRequest,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Prefixes,
    Problem,
    Request,
    ScoreRequest,
    Search,
    SizeRequest,
    Waypoint,
)
from compressor.contracts.schedule import Dialogue, Schedule
from compressor.contracts.types import Better, Reads, Scores

__all__ = [
    "Best",
    "BestRequest",
    "Better",
    "CompressedWeight",
    "Compressor",
    "Context",
    "CountRequest",
    "Dialogue",
    "EstimableMetric",
    "Estimate",
    "EstimateRequest",
    "Grid",
    "KeepRequest",
    "Metric",
    "Prefixes",
    "Problem",
    "Reads",
    "Request",
    "Schedule",
    "ScoreRequest",
    "Scores",
    "Search",
    "SizeRequest",
    "TextWindows",
    "TokenRounding",
    "Treat",
    "Waypoint",
]
