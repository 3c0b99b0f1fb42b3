"""What plugins implement: Metric, Compressor, Schedule and Recovery, and the types that they exchange with a run.

A plugin class is a dataclass; its fields are its options. This package does not import torch, because plugin modules
are imported for `--help`, and schedules do not use tensors.
"""

from compressor.contracts.compressor import Compressor, Context, Storage
from compressor.contracts.metric import EstimableMetric, Metric, TextWindows
from compressor.contracts.outputs import Readout, Runners
from compressor.contracts.quantized import (
    CompressedWeight,
    InputTransform,
    QuantizedMatrix,
    Scheme,
    Strategy,
    TokenRounding,
    dequantize,
    join_groups,
    split_groups,
    working_dtype,
)
from compressor.contracts.recovery import Loss, Reconstruction, Recovery, Trainer, Training, TrainingTexts
from compressor.contracts.requests import (
    Asks,
    Best,
    BestRequest,
    CountRequest,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Oracle,
    Prefixes,
    Problem,
    Request,
    ScoreRequest,
    Search,
    SizeRequest,
    ValuesRequest,
    Waypoint,
)
from compressor.contracts.schedule import Dialogue, Schedule
from compressor.contracts.types import Better, Component, Offer, Plan, Reads, Score, Scores, Treatment

__all__ = [
    "Asks",
    "Best",
    "BestRequest",
    "Better",
    "Component",
    "CompressedWeight",
    "Compressor",
    "Context",
    "CountRequest",
    "Dialogue",
    "EstimableMetric",
    "Estimate",
    "EstimateRequest",
    "InputTransform",
    "KeepRequest",
    "Loss",
    "Metric",
    "Offer",
    "Oracle",
    "Plan",
    "Prefixes",
    "Problem",
    "QuantizedMatrix",
    "Readout",
    "Reads",
    "Reconstruction",
    "Recovery",
    "Request",
    "Runners",
    "Schedule",
    "Scheme",
    "Score",
    "ScoreRequest",
    "Scores",
    "Search",
    "SizeRequest",
    "Storage",
    "Strategy",
    "TextWindows",
    "TokenRounding",
    "Trainer",
    "Training",
    "TrainingTexts",
    "Treatment",
    "ValuesRequest",
    "Waypoint",
    "dequantize",
    "join_groups",
    "split_groups",
    "working_dtype",
]
