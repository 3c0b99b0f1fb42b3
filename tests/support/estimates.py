"""What tests of estimates share: a tiny model with its reference, and the same differentiated in float64."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from compressor.compression.apply import Treatments
from compressor.contracts import (
    Component,
    Compressor,
    Context,
    EstimableMetric,
    Estimate,
    EstimateRequest,
    Offer,
    Plan,
    Readout,
    Reads,
    Treatment,
)
from compressor.data.reference import Reference, build_reference
from compressor.models import Model, load_model
from compressor.plugins import installed
from compressor.sensitivity.estimator import GradientEstimator
from compressor.settings import ComponentSettings, ModelSettings
from compressor_plugins.metrics.margin_noise import MarginNoise
from compressor_plugins.pruning.masks import PrunedWeight
from tests.support.families import save_checkpoint
from tests.support.references import random_prefixes

KEEP = 6
Options = dict[str, list[Treatment | None]]


@dataclass
class Nudge(Compressor):
    """Adds `amount` times a fixed random direction; `seeded` or, which is forbidden, another one each time."""

    seeded: bool = True

    name: ClassVar[str] = "nudge"

    def offer(self, component: Component) -> Offer:
        return Offer()

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        generator = torch.Generator().manual_seed(len(context.component.name)) if self.seeded else None
        return PrunedWeight(weight + amount * 0.1 * torch.randn(weight.shape, generator=generator), 32)


class BySequence(EstimableMetric):
    """An objective whose draws follow from a sequence's tokens, however many sequences are walked at once."""

    reads = Reads.LOGITS | Reads.DISTRIBUTION

    def __init__(self, inner: EstimableMetric) -> None:
        self.inner, self.name, self.better = inner, inner.name, inner.better

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return self.inner.sequence_values(candidate, base)

    def value(self, candidate: Readout, base: Readout) -> Tensor:
        return self.inner.value(candidate, base)

    def probe(self, candidate: Readout, base: Readout, generator: torch.Generator) -> Tensor:
        def alone(readout: Readout, row: int) -> Readout:
            return Readout(readout.logits[row : row + 1], readout.tokens[row : row + 1])

        rows = range(len(candidate.tokens))
        found = [self.inner.probe(alone(candidate, i), alone(base, i), seed_by(base.tokens[i])) for i in rows]
        return torch.cat(found)


def seed_by(tokens: Tensor) -> torch.Generator:
    return torch.Generator().manual_seed(int((tokens * torch.arange(1, len(tokens) + 1)).sum()))


@dataclass
class Bench:
    """A tiny model with its reference, ready to be estimated."""

    model: Model
    reference: Reference
    treatments: Treatments = field(default_factory=lambda: make_treatments())

    def estimate(
        self, objective: EstimableMetric, options: Mapping[str, Sequence[Treatment | None]], **given: object
    ) -> dict[str, Estimate]:
        request = EstimateRequest(options, objective.name, **given)
        return GradientEstimator(self.model, self.reference, self.treatments, objective).estimate(request)

    def everywhere(self, *options: Treatment | None) -> Options:
        return {name: list(options) for name in self.model.components}


def make_treatments(*compressors: Compressor) -> Treatments:
    plugins = installed().compressors
    chosen = [*(plugins[name]() for name in ("magnitude", "int8", "int4")), Nudge(), *compressors]
    return Treatments({compressor.name: compressor for compressor in chosen}, plugins)


def make_bench(
    family: str,
    folder: Path,
    count: int = 6,
    keep: int = KEEP,
    batch: int = 4,
    include: Sequence[str] = (),
    **given: Any,  # noqa: ANN401 - any config value
) -> Bench:
    save_checkpoint(family, folder, **given)
    model = load_model(ModelSettings(path=str(folder)), ComponentSettings(include=list(include)))
    return Bench(model, make_reference(model, count, keep, batch))


def make_reference(model: Model, count: int = 6, keep: int = KEEP, batch: int = 4) -> Reference:
    reference = build_reference(model, random_prefixes(model, count), keep, batch=batch)
    reference.remember_distribution(model)
    return reference


class Oracle:
    """The same model in float64, differentiated by autograd alone, one sequence after the other."""

    def __init__(self, bench: Bench, at: Plan | None = None) -> None:
        self.bench, self.keep = bench, bench.reference.continuation_tokens
        self.model = copy.deepcopy(bench.model)
        self.model.network.double().set_experts_implementation("eager")
        with torch.no_grad():
            self.base = [self.run(row) for row in bench.reference.tokens]
        self.now = {name: bench.model.read(name) for name in bench.model.components}
        for name, weight in bench.treatments.compress(bench.model, at or {}).items():
            self.now[name] = weight.dense()
            self.model.write(name, weight.dense().double())

    def run(self, row: Tensor) -> Tensor:
        """`[position, vocabulary]`"""
        logits: Tensor = self.model.network(input_ids=row[None, :-1], use_cache=False).logits[0, -self.keep :]
        return logits

    def slopes(self, name: str, scalar: Tensor) -> Tensor:
        """`[out, in]`: the gradient of a number by a component's weight."""
        weight_view = self.model.weight_views[name]
        (gradient,) = torch.autograd.grad(scalar, weight_view.parameter, retain_graph=True, allow_unused=True)
        gradient = torch.zeros_like(weight_view.parameter) if gradient is None else gradient
        return weight_view.part(gradient).reshape(weight_view.component.shape)

    def change(self, name: str, option: Treatment | None) -> Tensor:
        """`[out, in]` in float64: what an option adds to the weight that is there now."""
        weight = self.bench.model.read(name)
        if option is not None:
            weight = self.bench.treatments.compress_one(self.bench.model, name, option).dense()
        return weight.double() - self.now[name].double()

    def scalars(self, objective: EstimableMetric, index: int) -> tuple[Tensor, Tensor]:
        """Value and probe of one sequence, written out in float64."""
        row = self.bench.reference.tokens[index]
        tokens, base, z = row[-self.keep :], self.base[index], self.run(row)
        generator = seed_by(tokens)
        if isinstance(objective, MarginNoise):
            runner = base.scatter(-1, tokens[:, None], -torch.inf).argmax(-1)
            place = torch.arange(self.keep)
            margins, moved = (logits[place, tokens] - logits[place, runner] for logits in (base, z))
            weights = 1 / (margins + objective.closeness)
            weights = weights / weights.sum()
            signs = torch.randint(2, (1, self.keep), generator=generator)[0] * 2 - 1
            return (weights * (moved - margins) ** 2).sum(), (signs * weights.sqrt() * moved).sum()
        p, q = base.log_softmax(-1), z.log_softmax(-1)
        drawn = torch.rand((1, self.keep), generator=generator)[0].double()
        labels = torch.searchsorted(q.detach().exp().cumsum(-1), drawn[:, None])
        return (p.exp() * (p - q)).sum(-1).mean(), (q.gather(-1, labels)).sum() / (2 * self.keep) ** 0.5

    def changes(self, objective: EstimableMetric, name: str, options: Sequence[Treatment | None]) -> np.ndarray:
        """`[sequence, option]`: ⟨∂ value, Δ⟩ + ⟨∂ probe, Δ⟩²."""
        parameter = self.model.weight_views[name].parameter.requires_grad_(True)
        found = []
        for index in range(len(self.base)):
            value, probe = (self.slopes(name, scalar) for scalar in self.scalars(objective, index))
            moves = [self.change(name, option) for option in options]
            found.append([float((value * move).sum() + (probe * move).sum() ** 2) for move in moves])
        parameter.requires_grad_(False)
        return np.array(found)
