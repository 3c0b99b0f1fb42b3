"""Trials scored twice: as the engine does it, and by one plain forward pass for each."""

from __future__ import annotations

import numpy as np

from compressor.contracts import Metric, Plan, TextWindows
from compressor.data.reference import build_reference
from compressor.data.texts import make_windows
from compressor.evaluation.engine import Engine
from compressor.evaluation.evaluator import Evaluator, TrialEngine
from compressor.evaluation.layer_replay import LayerReplay
from compressor.evaluation.streaming_engine import StreamingEngine
from compressor.models import Model
from compressor.resources import MemoryBudget
from compressor.settings import DataSettings, SweepMode
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.perplexity import Perplexity
from tests.support.references import random_prefixes
from tests.support.trial_weights import MaskedWeights

TOKENS = 12


def make_sweep(model: Model, batch: int = 4, text: bool = False) -> Evaluator:
    metrics: dict[str, Metric] = {"fdtm": Fdtm(), "kl": Kl()}
    reference = build_reference(model, random_prefixes(model, count=6), TOKENS, batch=batch)
    reference.remember_distribution(model)
    windows = {}
    if text:
        metrics["perplexity"] = Perplexity()
        settings = DataSettings(prefix_tokens=9, continuation_tokens=8)
        windows["perplexity"] = make_windows(model, TextWindows(tokens=100), settings, None)
    return Evaluator(model, reference, metrics, MaskedWeights(model), windows)


def open_engine(evaluator: Evaluator, streams: bool) -> TrialEngine:
    """The engine for a model in memory, or the one for a model that is larger."""
    replay, source = LayerReplay(evaluator.model), evaluator.weight_source
    return StreamingEngine(replay, source, MemoryBudget()) if streams else Engine(replay, source)


def score_both(evaluator: Evaluator, trials: list[Plan], **choice: object) -> tuple[list, list]:  # type: ignore[type-arg]
    exact = evaluator.score_all(trials, **choice)  # type: ignore[arg-type]
    assert evaluator.mode is SweepMode.exact, "the model could not be replayed"
    evaluator.mode = SweepMode.plain
    return exact, evaluator.score_all(trials, **choice)  # type: ignore[arg-type]


def assert_same_bits(found: list, expected: list) -> None:  # type: ignore[type-arg]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
