"""The suite of metrics notices every broken promise of estimable ones, and lets honest ones pass."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compressor.contracts import Better, EstimableMetric, Metric, Readout, Reads
from compressor.testing import MetricContract
from compressor_plugins.metrics.kl import Kl
from tests.support.broken_plugins import broken


@dataclass
class Distance(EstimableMetric):
    """An honest estimable metric to break: mean squared change of the logits."""

    name: ClassVar[str] = "distance"
    reads: ClassVar[Reads] = Reads.DISTRIBUTION
    better: ClassVar[Better] = Better.LOWER

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return Distance.value(self, candidate, base)[:, None]

    def value(self, candidate: Readout, base: Readout) -> Tensor:
        return (candidate.logits - base.logits).square().mean((-2, -1))

    def probe(self, candidate: Readout, base: Readout, generator: torch.Generator) -> Tensor:
        signs = torch.randint(2, candidate.logits.shape, generator=generator) * 2.0 - 1
        return probe_with(candidate, signs)


def probe_with(candidate: Readout, signs: Tensor) -> Tensor:
    return (signs * candidate.logits).sum((-2, -1)) / candidate.logits[0].numel() ** 0.5


class TestHonestEstimableMetric(MetricContract):
    instance = Distance()


def value_by(change: Callable[[Distance, Readout, Readout], Tensor]) -> dict[str, Any]:
    """`value` and the statistic both by `change`, which gets the honest metric too."""
    honest = Distance()
    return {
        "value": lambda self, candidate, base: change(honest, candidate, base),
        "sequence_values": lambda self, candidate, base: change(honest, candidate, base).detach()[:, None],
    }


def probe_by(change: Callable[[Readout, Readout, torch.Generator], Tensor]) -> dict[str, Any]:
    return {"probe": lambda self, candidate, base, generator: change(candidate, base, generator)}


def honest_probe(candidate: Readout, base: Readout, generator: torch.Generator) -> Tensor:
    return Distance().probe(candidate, base, generator)


def half_detached(candidate: Readout, base: Readout) -> Tensor:
    change = candidate.logits - base.logits
    return (change * change.detach()).mean((-2, -1))


counter = itertools.count()
CURVATURE = "probes_have_the_curvature_of_the_value"
BROKEN_ESTIMABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "doubled": ("value_is_the_first_sequence_value", {"value": lambda self, c, b: 2 * Distance().value(c, b)}),
    "one_number": ("value_is_the_first_sequence_value", {"value": lambda self, c, b: Distance().value(c, b).mean()}),
    "not_zero": ("value_is_the_first_sequence_value", value_by(lambda honest, c, b: 1 + honest.value(c, b))),
    "falls": ("value_is_the_first_sequence_value", {"aggregate": lambda self, s: -s[..., 0].mean(-1)}),
    "no_gradient": ("gradients_are_finite", value_by(lambda honest, c, b: honest.value(c, b).detach())),
    "infinite_gradient": ("gradients_are_finite", value_by(lambda honest, c, b: honest.value(c, b).sqrt())),
    "others_matter": (
        "gradients_are_finite",
        value_by(lambda honest, c, b: honest.value(c, b) - honest.value(c, b).mean()),
    ),
    "flat_probe": ("gradients_are_finite", probe_by(lambda c, b, g: 0 * honest_probe(c, b, g))),
    "probes_mixed": ("gradients_are_finite", probe_by(lambda c, b, g: honest_probe(c, b, g).cumsum(0).flip(0))),
    "draws": ("probe_draws_from_its_generator", probe_by(lambda c, b, g: probe_with(c, torch.randn(c.logits.shape)))),
    "own_seed": (
        "probe_draws_from_its_generator",
        probe_by(lambda c, b, g: next(counter) * honest_probe(c, b, g)),
    ),
    "half_slope": ("value_has_its_own_slope", value_by(lambda honest, c, b: half_detached(c, b))),
    "doubled_probe": (CURVATURE, probe_by(lambda c, b, g: 2 * honest_probe(c, b, g))),
    "summed": (CURVATURE, probe_by(lambda c, b, g: honest_probe(c, b, g) * c.logits[0].numel() ** 0.5)),
    "no_signs": (CURVATURE, probe_by(lambda c, b, g: probe_with(c, torch.ones(c.logits.shape)))),
    "same_signs": (
        CURVATURE,
        probe_by(lambda c, b, g: probe_with(c, torch.randint(2, c.logits.shape[1:], generator=g) * 2.0 - 1)),
    ),
    "large_signs": (
        CURVATURE,
        probe_by(lambda c, b, g: probe_with(c, 1.1 * torch.randn(c.logits.shape, generator=g))),
    ),
}


@pytest.mark.parametrize("case", BROKEN_ESTIMABLE)
def test_broken_estimable_metric_is_noticed(case: str) -> None:
    promise, members = BROKEN_ESTIMABLE[case]
    arguments = {"away": 0.0} if promise == CURVATURE else {}
    with pytest.raises(AssertionError):
        getattr(MetricContract(), f"test_{promise}")(broken(Distance, **members), **arguments)


def test_probes_that_only_fit_the_base_are_noticed() -> None:
    """The curvature of KL moves with the candidate: labels that the base draws do not have it."""

    def probe(self: Metric, candidate: Readout, base: Readout, generator: torch.Generator) -> Tensor:
        p = base.log_probabilities.exp()
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(*p.shape[:2], 1)
        return candidate.log_probabilities.gather(-1, drawn)[..., 0].sum(-1) / (2 * p.shape[1]) ** 0.5

    plugin = broken(Kl, probe=probe)
    MetricContract().test_probes_have_the_curvature_of_the_value(plugin, 0.0)
    with pytest.raises(AssertionError, match="the squared slope of the probe"):
        MetricContract().test_probes_have_the_curvature_of_the_value(plugin, 1.0)
