"""A case: a model on the device with its reference, and the trials and estimates that checks ask of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.compression.apply import Treatments
from compressor.compression.trial_weights import TrialWeights
from compressor.contracts import EstimateRequest, Metric, Plan, Treatment
from compressor.data.reference import Reference, build_reference
from compressor.data.sampling import sample_sequences
from compressor.evaluation.engine import Engine
from compressor.evaluation.evaluator import Evaluator, SequenceValues
from compressor.evaluation.layer_replay import LayerReplay
from compressor.models import Model, load_model
from compressor.plugins import installed
from compressor.sensitivity.estimator import GradientEstimator
from compressor.sensitivity.shrinkage import steady_changes
from compressor.settings import Device, DType, ModelSettings, SweepMode

PREFIX_TOKENS = 32
CONTINUATION_TOKENS = 64


@dataclass
class Case:
    """Model and reference are made when they are first asked for. `folder` None is the embedded model.

    The reference has `prefixes` prefixes in batches of `batch`: sampled from the model, or random tokens, which cost
    nothing. `most_trials` bounds how many components are tried.
    """

    folder: Path | None
    dtype: DType
    device: Device
    prefixes: int
    batch: int
    most_trials: int
    samples_prefixes: bool = True

    @cached_property
    def model(self) -> Model:
        return self.load()

    def load(self, dtype: DType | None = None, device: Device | None = None, stream: bool = False) -> Model:
        """Another copy of the model; on the same device and in the same dtype, unless others are given."""
        path = None if self.folder is None else str(self.folder)
        settings = ModelSettings(path, dtype=dtype or self.dtype, device=device or self.device, stream=stream)
        return load_model(settings)

    @cached_property
    def prefix_tokens(self) -> Tensor:
        """`[sequence, position]`"""
        if self.samples_prefixes:
            return sample_sequences(self.model, self.prefixes, PREFIX_TOKENS, 0)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(3, self.model.vocabulary, (self.prefixes, PREFIX_TOKENS), generator=generator)

    @cached_property
    def reference(self) -> Reference:
        reference = build_reference(self.model, self.prefix_tokens, CONTINUATION_TOKENS, self.batch)
        reference.remember_distribution(self.model)
        return reference

    def open_sweep(
        self,
        metrics: Sequence[str],
        at_once: int | None = None,
        plain: bool = False,
        reference: Reference | None = None,
    ) -> Evaluator:
        """Scores by the engine, `at_once` trials as one batch, or by a plain forward pass for each trial."""
        mode = SweepMode.plain if plain else SweepMode.exact
        weights = TrialWeights(self.model, Treatments({}, installed().compressors), 1 << 30)
        evaluator = Evaluator(self.model, reference or self.reference, make_metrics(metrics), weights, mode=mode)
        if at_once is not None:
            evaluator.engine = Engine(LayerReplay(self.model), weights, at_once)
        return evaluator

    def make_trials(self, compressor: str, amount: float | None = None) -> list[Plan]:
        """One trial for each of some components spread over the model; `amount` None is the first that is offered."""
        names = list(self.model.components)
        names = names[:: max(1, len(names) // self.most_trials)][: self.most_trials]

        def choose(name: str) -> Treatment:
            offered = installed().compressors[compressor]().offer(self.model.components[name])
            return Treatment(compressor, offered.levels[0] if amount is None else amount)

        return [{name: choose(name)} for name in names]

    def estimate(
        self, objective: str, compressors: Sequence[str], names: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Estimated changes `[sequence, option]` by component; of a compressor with a range, 21 amounts are options."""
        configured = {name: installed().compressors[name]() for name in compressors}
        options: dict[str, list[Treatment | None]] = {}
        for name in names or self.model.components:
            offers = {key: compressor.offer(self.model.components[name]) for key, compressor in configured.items()}
            amounts = {key: np.linspace(0, 1, 21) if offer.is_range else offer.levels for key, offer in offers.items()}
            options[name] = [Treatment(key, float(amount)) for key, found in amounts.items() for amount in found]
        treatments = Treatments(configured, installed().compressors)
        metric = installed().metrics[objective]()
        sensitivity = GradientEstimator(self.model, self.reference, treatments, metric)
        return steady_changes(sensitivity.estimate(EstimateRequest(options, objective)))


def make_metrics(names: Sequence[str]) -> dict[str, Metric]:
    return {name: installed().metrics[name]() for name in names}


def find_differences(first: Sequence[SequenceValues], second: Sequence[SequenceValues]) -> dict[str, dict[str, float]]:
    """By metric: the largest and the mean difference of a sequence, over all trials."""
    found = {}
    for metric in first[0]:
        pairs = zip(first, second, strict=True)
        differences = np.abs([one[metric][:, 0] - other[metric][:, 0] for one, other in pairs])
        found[metric] = {"largest": float(differences.max()), "mean": float(differences.mean())}
    return found


def are_equal(differences: Mapping[str, Mapping[str, float]]) -> bool:
    return all(difference["largest"] == 0 for difference in differences.values())
