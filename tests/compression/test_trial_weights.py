"""Weights of trials: the same as from the compressor, and remembered where they take long to make."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from compressor.compression.apply import Treatments
from compressor.compression.calibration import gather
from compressor.compression.trial_weights import TrialWeights
from compressor.contracts import Component, Compressor, Context, Offer, Treatment
from compressor.registry import Registry
from compressor_plugins.pruning.masks import PrunedWeight
from tests.support.estimates import Bench, make_bench


@dataclass
class Shrunk(Compressor):
    """Divides a weight, and counts how often; 4 bits a weight. Its subclass needs calibration data."""

    name: ClassVar[str] = "shrunk"
    made: ClassVar[list[str]] = []

    def offer(self, component: Component) -> Offer:
        return Offer(by_row=True)

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        self.made.append(context.component.name)
        return PrunedWeight(weight / (1 + amount), 4)

    def compress_rows(self, weight: Tensor, amounts: tuple[float, ...], context: Context) -> PrunedWeight:
        return self.compress(weight, 0.5, context)


@dataclass
class Calibrated(Shrunk):
    name: ClassVar[str] = "calibrated"
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = make_bench("llama", tmp_path)
    known: Registry[Compressor] = Registry(Compressor)
    for cls in (Shrunk, Calibrated):
        known.add(cls, "tests", "0")
    configured = {"shrunk": Shrunk(), "calibrated": Calibrated()}
    bench.treatments = Treatments(configured, known)
    bench.treatments.calibration = gather(bench.model, bench.reference, bench.model.components, {"absmax"})
    Shrunk.made.clear()
    yield bench


def test_weights_are_those_of_the_compressor(bench: Bench) -> None:
    weights, treatments = TrialWeights(bench.model, bench.treatments, 1 << 30), bench.treatments
    for name in list(bench.model.components)[:3]:
        for treatment in (Treatment("shrunk", 0.5), Treatment("calibrated", 0.5)):
            expected = treatments.compress_one(bench.model, name, treatment).dense()
            assert all(torch.equal(weights.make(name, treatment).weight, expected) for _ in range(2))


def test_only_weights_from_calibration_data_are_remembered_until_forgotten(bench: Bench) -> None:
    weights, (first, second, *_) = TrialWeights(bench.model, bench.treatments, 1 << 30), bench.model.components
    rows = tuple([0.5] * bench.model.components[first].shape[0])
    for _ in range(2):
        weights.make(first, Treatment("calibrated", 0.5))
        weights.make(second, Treatment("calibrated", 0.5))
        weights.make(first, Treatment("calibrated", 0.25, {}))
    assert Shrunk.made == [first, second, first]
    Shrunk.made.clear()
    for treatment in (Treatment("shrunk", 0.5), Treatment("calibrated", 0.5, rows=rows)):
        for _ in range(2):
            weights.make(first, treatment)
    assert Shrunk.made == [first] * 4
    weights.forget()
    weights.make(first, Treatment("calibrated", 0.5))
    assert Shrunk.made == [first] * 5


def test_no_more_bytes_are_remembered_than_allowed(bench: Bench) -> None:
    first, second = (c for c in bench.model.components.values() if c.kind == "gate")
    assert first.parameters == second.parameters
    weights = TrialWeights(bench.model, bench.treatments, most_bytes=first.parameters // 2)
    for component in (first, second, first, second):
        weights.make(component.name, Treatment("calibrated", 0.5))
    assert Shrunk.made == [first.name, second.name, second.name]


def test_prepared_weights_are_made_once(bench: Bench) -> None:
    weights, (first, second, *_) = TrialWeights(bench.model, bench.treatments, 1 << 30), bench.model.components
    weights.prepare(
        [{first: Treatment("shrunk", 0.5)}, {first: Treatment("shrunk", 0.5), second: Treatment("shrunk", 0)}]
    )
    assert Shrunk.made == [first, second]
    weights.make(first, Treatment("shrunk", 0.5))
    assert Shrunk.made == [first, second]
    weights.make(first, Treatment("shrunk", 0.25))
    assert Shrunk.made == [first, second, first]
