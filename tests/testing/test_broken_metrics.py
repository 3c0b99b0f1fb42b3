"""The suite of metrics notices every broken promise, one mutant for each, and lets honest metrics pass."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compressor.contracts import Better, EstimableMetric, Metric, Readout, Reads, TextWindows
from compressor.errors import PluginError
from compressor.testing import MetricContract
from compressor_plugins.metrics.kl import Kl
from tests.support.broken_plugins import broken, list_tests


@dataclass
class Matches(Metric):
    """An honest metric to break: share of matching tokens."""

    name: ClassVar[str] = "matches"
    reads: ClassVar[Reads] = Reads.PREDICTED
    better: ClassVar[Better] = Better.HIGHER

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        right = (candidate.predicted == candidate.tokens) & candidate.counted
        return right.double().sum(-1, keepdim=True)


class TestHonestMetric(MetricContract):
    instance = Matches()


class TestHonestTextMetric(MetricContract):
    instance = broken(Matches, text=lambda self: TextWindows())


def values_by(change: Callable[[Readout, Readout], Tensor]) -> dict[str, Any]:
    return {"sequence_values": lambda self, candidate, base: change(candidate, base)}


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
        return (signs * candidate.logits).sum((-2, -1)) / candidate.logits[0].numel() ** 0.5


class TestHonestEstimableMetric(MetricContract):
    instance = Distance()


def value_by(change: Callable[[Distance, Readout, Readout], Tensor]) -> dict[str, Any]:
    """`value` and the first sequence value both by `change`, which gets the honest metric too."""
    honest = Distance()
    return {
        "value": lambda self, candidate, base: change(honest, candidate, base),
        "sequence_values": lambda self, candidate, base: change(honest, candidate, base).detach()[:, None],
    }


def half_detached(candidate: Readout, base: Readout) -> Tensor:
    change = candidate.logits - base.logits
    return (change * change.detach()).mean((-2, -1))


def draw_by_the_base(self: Metric, candidate: Readout, base: Readout, generator: torch.Generator) -> Tensor:
    """A probe with the curvature of KL at the base alone, since the base draws its labels."""
    p = base.log_probabilities.exp()
    drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(*p.shape[:2], 1)
    return candidate.log_probabilities.gather(-1, drawn)[..., 0].sum(-1) / (2 * p.shape[1]) ** 0.5


counter = itertools.count()
MUTANTS: dict[str, tuple[type[Metric], dict[str, Any]]] = {
    "can_be_registered_and_configured": (Matches, {"name": "No Name"}),
    "values_are_finite_rows": (Matches, values_by(lambda c, b: c.log_probabilities[..., 0])),  # undeclared
    "sequences_are_independent": (Matches, values_by(lambda c, b: c.predicted - c.predicted.double().mean())),
    "is_pure": (Matches, values_by(lambda c, b: torch.rand(len(c.tokens), 1))),
    "only_counted_positions_matter": (
        Matches,
        {"text": lambda self: TextWindows(), **values_by(lambda c, b: c.predicted.double())},
    ),
    "aggregate_takes_many_samples_at_once": (Matches, {"aggregate": lambda self, s: s[..., 0].mean(axis=0)}),
    "nothing_beats_the_base": (
        Matches,
        {
            "sequence_values": lambda *given: -Matches.sequence_values(*given),
            "aggregate": lambda self, s: -s[..., 0].mean(-1),
        },
    ),
    "value_is_the_first_sequence_value": (Distance, {"value": lambda self, c, b: 2 * Distance().value(c, b)}),
    "gradients_are_finite": (Distance, value_by(lambda honest, c, b: honest.value(c, b) - honest.value(c, b).mean())),
    "probe_draws_from_its_generator": (
        Distance,
        {"probe": lambda self, c, b, generator: next(counter) * Distance().probe(c, b, generator)},
    ),
    "value_has_its_own_slope": (Distance, value_by(lambda honest, c, b: half_detached(c, b))),
    "probes_have_the_curvature_of_the_value": (Kl, {"probe": draw_by_the_base}),
}
"""Promise -> an honest metric, and what breaks it."""

ARGUMENTS = {
    "values_are_finite_rows": {"dtype": "float32"},
    "probes_have_the_curvature_of_the_value": {"away": 1.0},
}


def test_every_promise_has_a_mutant() -> None:
    assert list_tests(MetricContract) == {*MUTANTS}


@pytest.mark.parametrize("promise", MUTANTS)
def test_a_broken_promise_is_noticed(promise: str) -> None:
    honest, members = MUTANTS[promise]
    test, arguments = getattr(MetricContract(), f"test_{promise}"), ARGUMENTS.get(promise, {})
    test(honest(), **arguments)
    with pytest.raises((AssertionError, PluginError)):
        test(broken(honest, **members), **arguments)


def test_probes_may_fit_the_base_alone_only_at_the_base() -> None:
    """The mutant of curvature has the curvature of KL there, so that being away from the base is what notices it."""
    MetricContract().test_probes_have_the_curvature_of_the_value(broken(Kl, probe=draw_by_the_base), 0.0)
