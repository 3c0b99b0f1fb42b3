"""What every option of every component would do to an objective, from one walk back over the layers.

With θ the weights of a plan and Δ the change of one component by an option, a sequence's first value v changes by

    v(θ + Δ) − v(θ) ≈ ⟨∂ value/∂θ, Δ⟩ + E⟨∂ probe/∂θ, Δ⟩²

`value` and `probe` are the objective's (see `EstimableMetric`). What an option does to inputs is not in Δ, and not
foreseen; what the plan does to them is in effect. One draw of the probe for each sequence is enough, for
the mean over sequences is its expectation too. At the base the first term is nothing, and is not computed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compressor.compression.apply import Treatments, make_replacement, read_untreated
from compressor.contracts import EstimableMetric, Estimate, EstimateRequest, Readout, Treatment
from compressor.data.reference import Reference
from compressor.errors import ModelError
from compressor.models import Model
from compressor.sensitivity.gradients import LayerwiseGradients

KEPT_NUMBERS = 1 << 27
"""Numbers that weight changes may hold from one walk to the next; others are made anew.

A constant, not a share of the memory budget: it decides how many sequences one walk takes, and each walk draws its
random numbers anew.
"""

Scalar = Callable[[Readout, Readout], Tensor]


@dataclass
class GradientEstimator:
    """Estimates what treatments of `model` do to `objective` on the sequences of `reference`.

    `is_base` says that the model as it stands is the base itself.
    """

    model: Model
    reference: Reference
    treatments: Treatments
    objective: EstimableMetric
    is_base: bool = True
    seed: int = 0

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """The answer to a request; raises ModelError that names a component whose gradient is not finite."""
        self.treatments.check_repeatable(self.model, request.options)
        compressed = self.treatments.compress(self.model, request.at)
        current = {name: make_replacement(weight) for name, weight in compressed.items()}
        walk = LayerwiseGradients(self.model, list(request.options))
        totals = {name: Total() for name in request.options}
        with self.model.swapped(current) as originals:
            changes = Changes(self.model, self.treatments, request.options, originals)
            for start, rows in self._sequences(request, walk.at_once or self._count_at_once(changes)):
                line, square = (Projections(changes, len(rows), squared) for squared in (False, True))
                if self.walks(request) == 2:
                    self._project(walk, self.objective.value, start, rows, line)
                self._project(walk, self._probe(start), start, rows, square)
                for name, total in totals.items():
                    total.add(name, line, square)
        return {name: total.finish(name, request.by_row) for name, total in totals.items()}

    def walks(self, request: EstimateRequest) -> int:
        """How often each sequence is walked for the request: for the probe and, away from the base, for the value."""
        return count_walks(request, self.is_base)

    def _sequences(self, request: EstimateRequest, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """Index of the first, and tokens, of as many sequences as one walk takes."""
        chosen = range(len(self.reference.tokens))[request.start : request.stop]
        for start in chosen[::at_once]:
            yield start, self.reference.tokens[start : min(start + at_once, chosen.stop)]

    def _count_at_once(self, changes: "Changes") -> int:
        """A batch; where every walk makes the changes anew, as many as have activations of half the model's size."""
        if changes.keeps:
            return self.reference.batch
        widths: dict[int | None, int] = {}
        for component in self.model.components.values():
            widths[component.layer] = widths.get(component.layer, 0) + sum(component.shape)
        a_sequence = 4 * self.reference.tokens.shape[1] * max(widths.values())
        return max(self.reference.batch, self.model.base_parameters // a_sequence)

    def _probe(self, start: int) -> Scalar:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + start) % 2**63)
        return lambda candidate, base: self.objective.probe(candidate, base, generator)

    def _project(self, walk: LayerwiseGradients, read: Scalar, start: int, rows: Tensor, onto: "Projections") -> None:
        """One walk: the gradients of what `read` gives for each sequence, projected on every change."""
        base = self.reference.base_readout(start, len(rows), self.model)

        def scalar(logits: Tensor) -> Tensor:
            name, reads = self.objective.name, self.objective.reads
            return read(Readout(logits, base.tokens).restricted(reads, name), base.restricted(reads, name))

        walk.back(rows[:, :-1], self.reference.continuation_tokens, scalar, onto.add)


def count_walks(request: EstimateRequest, is_base: bool) -> int:
    """How often each sequence is walked for a request to a model that is the base, or is not."""
    return 1 if is_base and not request.at else 2


class Changes:
    """What each option adds to the weights of a component, `[option, out, in]` in float32.

    `keeps` says that all of them are made once; else only the last component's stay from one call to the next.
    """

    def __init__(
        self,
        model: Model,
        treatments: Treatments,
        options: Mapping[str, Sequence[Treatment | None]],
        originals: Mapping[str, Tensor],
    ) -> None:
        self.options = options
        self.components = {name: model.components[name] for name in options}
        self._model, self._treatments, self._originals = model, treatments, originals
        numbers = sum(self.components[name].parameters * len(chosen) for name, chosen in options.items())
        self.keeps = numbers <= KEPT_NUMBERS
        self._kept: dict[str, Tensor] = {}
        self._room: Tensor | None = None

    def of(self, name: str) -> Tensor:
        """The changes of a component, against the weight that is on the model now."""
        if name in self._kept:
            return self._kept[name]
        if not self.keeps:
            self._kept.clear()  # all but the last, which the next sequences of a walk ask for again
        now = self._model.read(name)
        kept = self._originals.get(name, now)
        original = read_untreated(self._model, name) if name in self._model.held else kept
        component = self.components[name]
        made = self._make_room(len(self.options[name]), component.shape, now.device)
        treatments = [treatment for treatment in self.options[name] if treatment is not None]
        compressed = self._treatments.compress_each(component, original, treatments)
        for change, treatment in zip(made, self.options[name], strict=True):
            weight = kept if treatment is None else next(compressed).dense()
            torch.sub(weight.float(), now.float(), out=change)
        self._kept[name] = made
        return made

    def _make_room(self, options: int, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Of its own where changes are kept; else always the same, for fresh memory costs more than what fills it."""
        if self.keeps:
            return torch.empty(options, *shape, device=device)
        if self._room is None:
            sizes = (len(chosen) * self.components[name].parameters for name, chosen in self.options.items())
            self._room = torch.empty(max(sizes), device=device)
        return self._room[: options * math.prod(shape)].view(options, *shape)


class Projections:
    """⟨gradient, Δ⟩ of every component by row, in the sums that are needed of it; on the CPU, in float64.

    `sums` `[sequence, option]` over rows, `squares` those of its squares, and `rows` `[row, option]` over sequences, of
    squares if it is `squared`. `reached` names the components that a gradient came to.
    """

    def __init__(self, changes: Changes, sequences: int, squared: bool) -> None:
        self._changes, self._squared = changes, squared
        self.reached: set[str] = set()
        self.sums, self.squares, self.rows = {}, {}, {}
        for name, component in changes.components.items():
            options = len(changes.options[name])
            self.sums[name] = torch.zeros(sequences, options, dtype=torch.float64)
            self.squares[name] = torch.zeros(sequences, options, dtype=torch.float64)
            self.rows[name] = torch.zeros(component.shape[0], options, dtype=torch.float64)

    def add(self, name: str, part: slice, gradients: Tensor) -> None:
        """Take the gradients `[sequence, out, in]`, of any precision, of the sequences `part`."""
        found = torch.bmm(gradients.float().transpose(0, 1), self._changes.of(name).permute(1, 2, 0)).double()
        squares = found.square()
        self.sums[name][part] = found.sum(0).cpu()
        self.squares[name][part] = squares.sum(0).cpu()
        self.rows[name] += (squares if self._squared else found).sum(1).cpu()
        if name not in self.reached and gradients.any():
            self.reached.add(name)


@dataclass
class Total:
    """What was found of one component: lists of `[sequence, option]`, an entry a walk, and `rows` over all walks."""

    line: list[Tensor] = field(default_factory=list)
    square: list[Tensor] = field(default_factory=list)
    apart: list[Tensor] = field(default_factory=list)
    rows: Tensor | float = 0.0
    reached: bool = False

    def add(self, name: str, line: Projections, square: Projections) -> None:
        """Add some sequences: projections that count as they are, and others that count squared."""
        self.line.append(line.sums[name])
        self.square.append(square.sums[name].square())
        self.apart.append(square.squares[name])
        self.rows = self.rows + line.rows[name] + square.rows[name]
        self.reached = self.reached or name in square.reached

    def finish(self, name: str, by_row: bool) -> Estimate:
        """The estimate; raises ModelError where it is not finite."""
        line, square, apart = (torch.cat(parts).numpy() for parts in (self.line, self.square, self.apart))
        if not np.isfinite(line + square + apart).all():
            raise ModelError(
                f"the gradient of `{name}` holds NaN or infinity; use model.dtype=float32, or exclude it by "
                "components.exclude"
            )
        rows = np.asarray(self.rows) / len(line) if by_row else None
        return Estimate(line + square, rows, self.reached, line + apart, line)
