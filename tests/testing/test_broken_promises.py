"""The suites of metrics and compressors notice every broken promise, and let honest plugins pass."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compressor.contracts import (
    Better,
    Component,
    CompressedWeight,
    Compressor,
    Context,
    Metric,
    Offer,
    QuantizedMatrix,
    Readout,
    Reads,
    TextWindows,
)
from compressor.errors import PlanError, PluginError
from compressor.testing import CompressorContract, MetricContract
from tests.support.broken_plugins import broken

# Metrics ----------------------------------------------------------------------------------------------------------


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


def values_by(change: Callable[[Readout, Readout], Tensor]) -> Callable[[Metric, Readout, Readout], Tensor]:
    return lambda self, candidate, base: change(candidate, base)


def zero_in_place(candidate: Readout, base: Readout) -> Tensor:
    return candidate.log_probabilities.mul_(0.5).amax((-1, -2))[:, None]


ALL = Reads.PREDICTED | Reads.REFERENCE | Reads.DISTRIBUTION
BROKEN_METRICS: dict[str, tuple[str, dict[str, Any]]] = {
    "no_columns": ("values_are_finite_rows", {"sequence_values": values_by(lambda c, b: c.predicted[:, 0])}),
    "not_finite": ("values_are_finite_rows", {"sequence_values": values_by(lambda c, b: c.predicted / 0)}),
    "undeclared": (
        "values_are_finite_rows",
        {"sequence_values": values_by(lambda c, b: c.log_probabilities[..., 0])},
    ),
    "base_unread": ("values_are_finite_rows", {"sequence_values": values_by(lambda c, b: b.predicted)}),
    "batch_mean": (
        "sequences_are_independent",
        {"sequence_values": values_by(lambda c, b: c.predicted - c.predicted.double().mean())},
    ),
    "draws": ("is_pure", {"sequence_values": values_by(lambda c, b: torch.rand(len(c.tokens), 1))}),
    "in_place": ("is_pure", {"reads": ALL, "sequence_values": values_by(zero_in_place)}),
    "uncounted": (
        "only_counted_positions_matter",
        {"text": lambda self: TextWindows(), "sequence_values": values_by(lambda c, b: c.predicted.double())},
    ),
    "flat_aggregate": ("aggregate_takes_many_samples_at_once", {"aggregate": lambda self, s: s.mean()}),
    "wrong_axis": ("aggregate_takes_many_samples_at_once", {"aggregate": lambda self, s: s[..., 0].mean(axis=0)}),
    "wrong_way": ("nothing_beats_the_base", {"better": Better.LOWER}),
    "first_is_wrong_way": (
        "nothing_beats_the_base",
        {
            "sequence_values": lambda *given: -Matches.sequence_values(*given),
            "aggregate": lambda self, s: -s[..., 0].mean(-1),
        },
    ),
    "no_default": ("can_be_registered_and_configured", {"name": "No Name"}),
}


@pytest.mark.parametrize("case", BROKEN_METRICS)
def test_broken_metric_is_noticed(case: str) -> None:
    promise, members = BROKEN_METRICS[case]
    arguments = {"dtype": "float32"} if promise == "values_are_finite_rows" else {}
    with pytest.raises((AssertionError, PluginError)):
        getattr(MetricContract(), f"test_{promise}")(broken(Matches, **members), **arguments)


# Compressors ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored(CompressedWeight):
    weight: Tensor
    extra_bits: int = 0

    def dense(self) -> Tensor:
        return self.weight

    @property
    def bits(self) -> int:
        return self.weight.numel() * self.weight.element_size() * 8 + self.extra_bits


@dataclass(frozen=True)
class Quantized(Stored):
    """Whatever the weight is, it has integers of 8 bits and a scale for each row."""

    @property
    def quantized(self) -> QuantizedMatrix:
        integers = torch.zeros(self.weight.shape, dtype=torch.int8)
        return QuantizedMatrix(integers, torch.ones(len(integers), 1), 8, integers.shape[1], self.weight.dtype)

    @property
    def bits(self) -> int:
        return 8 * self.weight.numel() + 32 * len(self.weight) + self.extra_bits


@dataclass
class First(Compressor):
    """An honest pruner to break: what is zero goes first, then the first weights."""

    name: ClassVar[str] = "first"

    def offer(self, component: Component) -> Offer:
        return Offer()

    def importance(self, weight: Tensor, context: Context) -> Tensor:
        return torch.arange(1.0, weight.numel() + 1).view(weight.shape).masked_fill(weight == 0, 0)

    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        order = self.importance(weight, context).flatten().argsort(stable=True)
        pruned = weight.clone().flatten()
        pruned[order[: round(amount * len(order))]] = 0
        return Stored(pruned.view(weight.shape))


class TestHonestCompressor(CompressorContract):
    instance = First()


@dataclass
class FirstOfRows(First):
    """As honest, by row too."""

    def offer(self, component: Component) -> Offer:
        return Offer(by_row=True)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        if len(amounts) != len(weight):
            raise PlanError(f"{len(weight)} amounts are wanted, got {len(amounts)}; give each row one")
        rows = [self.compress(row[None], amount, context).dense() for row, amount in zip(weight, amounts, strict=True)]
        return Stored(torch.cat(rows))


class TestHonestCompressorByRow(CompressorContract):
    instance = FirstOfRows()


def compress_rows_by(change: Callable[[Tensor, Sequence[float]], Tensor]) -> Callable[..., CompressedWeight]:
    """Breaks what the honest one gives; the amounts come as a column."""
    honest = FirstOfRows().compress_rows

    def compress_rows(self: Compressor, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        honest(weight, amounts, context)
        return Stored(change(weight, amounts))

    return compress_rows


def prune_end(weight: Tensor, amount: float, last: bool) -> Tensor:
    """The first, or the last, of all weights gone."""
    line, count = weight.flatten().clone(), round(amount * weight.numel())
    gone = slice(len(line) - count, None) if last else slice(count)
    line[gone] = 0.0
    return line.view(weight.shape)


def prune_first(weight: Tensor, amounts: Sequence[float]) -> Tensor:
    component = Component("a", "up", 0, (len(weight), weight.shape[1]), 32)
    return FirstOfRows().compress_rows(weight, amounts, Context(component)).dense()


def make_wide(weight: Tensor) -> QuantizedMatrix:
    """Its integers need more than the four bits that it says."""
    integers = torch.full(weight.shape, 8, dtype=torch.int8)
    return QuantizedMatrix(integers, torch.ones(len(weight), 1), 4, weight.shape[1], weight.dtype)


def compress_by(change: Callable[[Tensor, float], CompressedWeight]) -> Callable[..., CompressedWeight]:
    return lambda self, weight, amount, context: change(weight, amount)


counter = itertools.count()
BITS = "bits_count_what_is_stored"
BROKEN_COMPRESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "level_twice": ("offer_is_valid", {"offer": lambda self, c: Offer(levels=(0.5, 0.5))}),
    "level_zero": ("offer_is_valid", {"offer": lambda self, c: Offer(levels=(0.0,))}),
    "range": ("offer_is_valid", {"offer": lambda self, c: Offer(low=0.5, high=1.5)}),
    "dtype": ("result_stands_in_for_the_weight", {"compress": compress_by(lambda w, a: Stored(w.double()))}),
    "shape": ("result_stands_in_for_the_weight", {"compress": compress_by(lambda w, a: Stored(w.T))}),
    "nan": ("result_stands_in_for_the_weight", {"compress": compress_by(lambda w, a: Stored(w / 0))}),
    "in_place": ("is_pure", {"compress": compress_by(lambda w, a: Stored(w.mul_(1 - a)))}),
    "draws": ("is_pure", {"compress": compress_by(lambda w, a: Stored(w * torch.rand(w.shape)))}),
    "counts": ("is_pure", {"compress": compress_by(lambda w, a: Stored(w * next(counter)))}),
    "no_bits": (BITS, {"compress": compress_by(lambda w, a: Stored(w, -8 * w.nbytes))}),
    "growing_bits": (BITS, {"compress": compress_by(lambda w, a: Stored(w, round(100 * a)))}),
    "too_few_bits": (BITS, {"compress": compress_by(lambda w, a: Quantized(w, -1))}),
    "too_many_bits": (BITS, {"compress": compress_by(lambda w, a: Quantized(w, 16))}),
    "other_integers": ("quantized_is_the_weight", {"compress": compress_by(lambda w, a: Quantized(w))}),
    "wide_integers": ("quantized_is_the_weight", {"compress": compress_by(lambda w, a: make_wide(w))}),
    "minus_zero": ("amount_zero_changes_nothing", {"compress": compress_by(lambda w, a: Stored(w + 0.0))}),
    "few_zeros": ("pruning_is_cumulative", {"compress": compress_by(lambda w, a: Stored(w))}),
    "not_nested": (
        "pruning_is_cumulative",
        {"compress": compress_by(lambda w, a: Stored(prune_end(w, a, last=a > 0.4)))},
    ),
    "nan_order": ("importance_is_an_order", {"importance": lambda self, w, c: w / 0 * 0}),
    "zeros_last": ("importance_is_an_order", {"importance": lambda self, w, c: -w.abs()}),
    "vector": ("importance_is_an_order", {"importance": lambda self, w, c: w.abs().amax(0)}),
}


LOSES, OWN_WAY, FIT = (
    "rows_lose_what_was_asked_for",
    "rows_go_each_its_own_way",
    "rows_are_refused_where_they_do_not_fit",
)
BROKEN_BY_ROW: dict[str, tuple[str, Callable[..., CompressedWeight]]] = {
    "few_zeros": (LOSES, compress_rows_by(lambda w, a: w.clone())),
    "many_zeros": (LOSES, compress_rows_by(lambda w, a: prune_first(w, [min(1, 2 * x) for x in a]))),
    "minus_zero": (LOSES, compress_rows_by(lambda w, a: prune_first(w, a) + 0.0)),
    "scaled": (LOSES, compress_rows_by(lambda w, a: prune_first(w, a) * (1 + a[0]))),
    "not_nested": (
        LOSES,
        compress_rows_by(lambda w, a: prune_first(w.flip(1), a).flip(1) if a[0] > 0.7 else prune_first(w, a)),
    ),
    "mean": (OWN_WAY, compress_rows_by(lambda w, a: prune_first(w, [sum(a) / len(a)] * len(a)))),
    "dtype": (OWN_WAY, compress_rows_by(lambda w, a: prune_first(w, a).double())),
    "shape": (OWN_WAY, compress_rows_by(lambda w, a: prune_first(w, a).T)),
    "nan": (OWN_WAY, compress_rows_by(lambda w, a: prune_first(w, a) / 0)),
    "in_place": (OWN_WAY, compress_rows_by(lambda w, a: w.mul_(0.5))),
    "draws": (OWN_WAY, compress_rows_by(lambda w, a: w * torch.rand(w.shape))),
    "any_number": (FIT, lambda self, weight, amounts, context: Stored(weight)),
    "too_few": (
        FIT,
        lambda self, weight, amounts, context: FirstOfRows.compress_rows(
            self, weight, [*amounts, *[0.5] * len(weight)][: len(weight)], context
        ),
    ),
}


@pytest.mark.parametrize("case", BROKEN_BY_ROW)
def test_broken_rows_are_noticed(case: str) -> None:
    promise, compress_rows = BROKEN_BY_ROW[case]
    weight = torch.tensor([[0.5, -0.0, 0.25, 4.0, 1.0], [-1.0, 2.0, -3.0, 0.5, 0.0]]).repeat(2, 1)
    with pytest.raises(AssertionError):
        plugin = broken(FirstOfRows, compress_rows=compress_rows)
        getattr(CompressorContract(), f"test_{promise}")(plugin, weight)


def test_rows_that_are_not_offered_must_be_refused() -> None:
    plugin = broken(First, compress_rows=FirstOfRows.compress_rows)
    with pytest.raises(AssertionError, match="2 amounts are taken, the weight has 2 rows"):
        CompressorContract().test_rows_are_refused_where_they_do_not_fit(plugin, torch.ones(2, 3))


@pytest.mark.parametrize("case", BROKEN_COMPRESSORS)
def test_broken_compressor_is_noticed(case: str) -> None:
    promise, members = BROKEN_COMPRESSORS[case]
    weight = torch.tensor([[0.5, -0.0, 0.25], [-1.0, 2.0, -3.0]])
    with pytest.raises((AssertionError, PluginError)):
        getattr(CompressorContract(), f"test_{promise}")(broken(First, **members), weight)
