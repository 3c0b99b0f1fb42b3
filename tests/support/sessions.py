"""Searches on a model that is open already."""

from collections.abc import Mapping
from pathlib import Path

from compressor.commands.setup import RunSetup
from compressor.compression.apply import Treatments
from compressor.compression.trial_weights import TrialWeights
from compressor.contracts import Metric, Prefixes
from compressor.data.reference import Reference
from compressor.evaluation.evaluator import Evaluator
from compressor.models import Model
from compressor.progress import Silent
from compressor.resources import MemoryBudget
from compressor.search.session import Session
from compressor.settings import DataSettings, Settings, SweepSettings
from compressor_plugins.schedules.uniform import Uniform


def open_session(
    model: Model,
    reference: Reference,
    treatments: Treatments,
    metrics: Mapping[str, Metric],
    folder: Path,
    sweep: SweepSettings | None = None,
) -> Session:
    """A search on the sequences of `reference`; without a cache, unless `sweep` wants one."""
    prefixes, tokens = len(reference.tokens), reference.continuation_tokens
    data = DataSettings(prefixes=prefixes, continuation_tokens=tokens)
    settings = Settings({}, {}, Uniform(), data=data, sweep=sweep or SweepSettings(cache=False))
    setup = RunSetup(
        settings, model, dict(metrics), treatments, TrialWeights(model, treatments, 1 << 30), MemoryBudget()
    )
    setup.evaluators[Prefixes.SEARCH] = Evaluator(model, reference, metrics, setup.trial_weights)
    return setup.open_session(folder, Silent())
