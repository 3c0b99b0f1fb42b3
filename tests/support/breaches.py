"""Plugins that keep their contract, and ways in which one of their members can break it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from compressor.contracts import (
    BestRequest,
    Better,
    Component,
    CompressedWeight,
    Context,
    CountRequest,
    EstimableMetric,
    EstimateRequest,
    KeepRequest,
    Offer,
    Problem,
    Readout,
    Reads,
    Request,
    Schedule,
    ScoreRequest,
    Search,
    SizeRequest,
    TextWindows,
    Treatment,
    ValuesRequest,
    Waypoint,
)
from compressor.contracts import Compressor as CompressorContract
from compressor_plugins.metrics.kl import Kl

LIMIT = 0.5


@dataclass
class FuzzedMetric(EstimableMetric):
    """KL once more."""

    name: ClassVar[str] = "fuzzed_metric"
    reads: ClassVar[Reads] = Reads.DISTRIBUTION
    better: ClassVar[Better] = Better.LOWER
    unit: ClassVar[str] = "nats"
    label: ClassVar[str] = "Fuzzed"

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        return Kl().sequence_values(candidate, base)

    def value(self, candidate: Readout, base: Readout) -> Tensor:
        return Kl().value(candidate, base)

    def probe(self, candidate: Readout, base: Readout, generator: Generator) -> Tensor:
        return Kl().probe(candidate, base, generator)

    def aggregate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(values[..., 0].mean(axis=-1))

    def text(self) -> TextWindows | None:
        return None


class FuzzedTransform:
    """Halves the inputs."""

    def transform(self, inputs: Tensor) -> Tensor:
        return inputs * LIMIT

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.transform(inputs)


class FuzzedWeight(CompressedWeight):
    """A dense weight."""

    def __init__(self, value: Tensor, transform: FuzzedTransform) -> None:
        self.value, self.made_transform = value, transform

    def dense(self) -> Tensor:
        return self.value

    @property
    def bits(self) -> int:
        return self.value.numel() * 8

    @property
    def quantized(self) -> None:
        return None

    @property
    def input_transform(self) -> FuzzedTransform:
        return self.made_transform


@dataclass
class FuzzedCompressor(CompressorContract):
    """Halves weights, and inputs."""

    name: ClassVar[str] = "fuzzed_compressor"
    weight: ClassVar[type[FuzzedWeight]] = FuzzedWeight
    transform: ClassVar[type[FuzzedTransform]] = FuzzedTransform

    @property
    def transforms_inputs(self) -> bool:
        return True

    def offer(self, component: Component) -> Offer:
        return Offer(levels=(0.25, LIMIT))

    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        return self.weight(weight * (1 - amount), self.transform())

    def compress_each(self, weight: Tensor, amounts: Any, context: Context) -> Iterator[CompressedWeight]:  # noqa: ANN401
        return (self.compress(weight, amount, context) for amount in amounts)

    def importance(self, weight: Tensor, context: Context) -> Tensor:
        return weight.abs()


@dataclass
class FuzzedSchedule(Schedule):
    """Makes every kind of request once; `was_kept` is set when it asks for the first change of the model."""

    name: ClassVar[str] = "fuzzed_schedule"
    was_kept: bool = False

    def ranks_by(self) -> tuple[str, ...]:
        return ("fuzzed_metric",)

    def limits_files(self) -> bool:
        return False

    def make_requests(self, problem: Problem) -> list[Request[Any]]:
        half = Treatment("fuzzed_compressor", LIMIT)
        plans = [{component.name: half} for component in problem.components]
        options = {component.name: [None, half] for component in problem.components}
        metric = ("fuzzed_metric",)
        waypoint, singles = Waypoint(plans[0], *metric, 0.5), {"fuzzed_metric": 0.5}
        return [
            SizeRequest(options),
            CountRequest("fuzzed_compressor", [0.0, 0.01, 0.1]),
            ScoreRequest([{}, *plans], metric),
            ValuesRequest(plans[:1], metric, start=1),
            BestRequest(plans, *metric, 1),
            EstimateRequest({name: list(chosen) for name, chosen in options.items()}, *metric),
            KeepRequest(plans[0], LIMIT, ["A note."], [waypoint], singles=singles),
            KeepRequest({name: half for plan in plans for name in plan}, last=True),
        ]

    def search(self, problem: Problem) -> Search:
        for request in self.make_requests(problem):
            self.was_kept |= type(request) is KeepRequest
            yield request


class Odd(BaseException):
    """No Exception, and none of Python's own."""


class Mute(Exception):
    """Has no message that can be read."""

    def __str__(self) -> str:
        raise ValueError


def fall(number: int = 0) -> int:
    return fall(number + 1)


def count_up() -> Iterator[int]:
    yield from range(3)


def throw(error: BaseException) -> Any:  # noqa: ANN401 - it never returns
    raise error


RAISED: dict[str, Callable[[], Any]] = {
    "error": lambda: throw(ValueError("of the\nplugin")),
    "exit": lambda: throw(SystemExit(0)),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "generator exit": lambda: throw(GeneratorExit()),
    "odd": lambda: throw(Odd()),
    "stop": lambda: throw(StopIteration(5)),
    "mute": lambda: throw(Mute()),
    "long": lambda: throw(KeyError("x" * 10**6)),
    "recursion": fall,
}
VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "five": lambda: 5,
    "negative": lambda: -1,
    "true": lambda: True,
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "huge": lambda: 1e308,
    "endless": lambda: 10**400,
    "text": lambda: "text",
    "empty text": lambda: "",
    "lines": lambda: "two\nlines",
    "bytes": lambda: b"x",
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "nested": lambda: [None],
    "mapping": lambda: {"x": 1},
    "object": object,
    "class": lambda: int,
    "generator": count_up,
    "array": lambda: np.zeros(3),
    "odd array": lambda: np.array([None, "x"]),
    "array of NaN": lambda: np.full(2, math.nan),
    "tensor": lambda: torch.zeros(2),
    "scalar": lambda: torch.tensor(math.nan),
    "empty tensor": lambda: torch.zeros(0),
    "meta": lambda: torch.zeros(2, 2, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "offer": lambda: Offer(levels=(math.nan,)),
    "reversed offer": lambda: Offer(levels=(0.5, 0.25)),
    "list offer": lambda: Offer(levels=[0.25, 0.5]),  # type: ignore[arg-type]
    "odd offer": lambda: Offer(low=None, high="x"),  # type: ignore[arg-type]
    "windows": lambda: TextWindows(path="missing", window=-1),
    "odd windows": lambda: TextWindows(5, "x", 0, math.nan),  # type: ignore[arg-type]
}
CHANGED: dict[str, Callable[[Any], Any]] = {
    "cut": lambda found: found[..., :-1],
    "longer": lambda found: torch.cat([found, found]),
    "half": lambda found: found.half(),
    "whole": lambda found: found.long(),
    "complex": lambda found: found.to(torch.complex64),
    "filled with NaN": lambda found: found * math.nan,
    "infinite": lambda found: found + math.inf,
    "large": lambda found: found * 1e30,
    "flat": lambda found: found.flatten(),
    "as a list": lambda found: found.tolist(),
    "as an array": lambda found: found.detach().numpy(),
    "on meta": lambda found: found.to("meta"),
    "sparse": lambda found: found.to_sparse(),
    "with a gradient": lambda found: found.detach().requires_grad_(),
    "first only": lambda found: list(found)[:1],
    "too many": lambda found: [*found, *found],
    "doubled": lambda found: (found, found),
}
"""What a member gave -> something else; where that is not possible, the error is one of the plugin."""
MEMBERS: dict[type, tuple[str, ...]] = {
    FuzzedMetric: (
        "sequence_values", "sequence_values", "aggregate", "value", "probe", "text", "label", "unit", "better", "reads",
    ),
    FuzzedCompressor: ("offer", "compress", "compress_each", "importance", "transforms_inputs", "needs", "sequential"),
    FuzzedWeight: ("dense", "bits", "quantized", "input_transform"),
    FuzzedTransform: ("transform",),
    FuzzedSchedule: ("search", "make_requests", "ranks_by", "limits_files", "repeats"),
}  # fmt: skip


def break_member(cls: type, member: str, breach: Callable[[Any], Any], after: int) -> type:
    """The class with a member that breaks its promise in every call after the first `after`.

    `breach` is called with what the member gives. A class attribute breaks it always.
    """
    own, calls = getattr(cls, member), 0

    def broken(self: object, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
        nonlocal calls
        calls += 1
        given = own.fget(self) if isinstance(own, property) else own(self, *args, **named)
        return breach(given) if calls > after else given

    changed: Any = breach(own) if not callable(own) and not isinstance(own, property) else broken
    if isinstance(own, property):
        changed = property(broken)
    elif callable(own):
        changed = functools.wraps(own)(broken)
        vars(changed).pop("__guarded__", None)
    body = {member: changed, "__module__": __name__, "__doc__": cls.__doc__}
    made = type(cls.__name__, (cls,), body)
    return made if cls in (FuzzedWeight, FuzzedTransform) else dataclass(made)
