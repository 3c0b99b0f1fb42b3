"""Estimates how every option of every component would change an objective, from one layer-by-layer backward pass.

Let θ be the weights of a plan, and Δ what an option adds to the weight of one component. The first value v of a
sequence changes by

    v(θ + Δ) − v(θ) ≈ ⟨∂ value/∂θ, Δ⟩ + E⟨∂ probe/∂θ, Δ⟩²

`value` and `probe` are methods of the objective (see `EstimableMetric`). The second term is a Gauss–Newton
approximation: the probe is random, and the expected outer product of its gradient with itself is half the Gauss–Newton
matrix of v. One draw of the probe for each sequence is enough, because costs are means over sequences. At the base the
first term is zero, and is not computed. Input transforms of an option are not part of Δ, so the estimate ignores them;
input transforms of the plan are applied.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compressor.compression.apply import Treatments, make_replacement, read_untreated
from compressor.compression.reached import find_reached
from compressor.contracts import EstimableMetric, Estimate, EstimateRequest, Readout, Treatment
from compressor.contracts.guard import name_plugin
from compressor.data.reference import Reference
from compressor.errors import ModelError, PluginError
from compressor.evaluation.batches import check_unchanged
from compressor.models import Model
from compressor.models.gradients import LayerwiseGradients

KEPT_NUMBERS = 1 << 27
"""The largest number of elements of all weight changes together that are kept between backward passes.

It is a constant, not a share of the memory budget: it decides how many sequences are in one backward pass, and each
pass draws its random numbers anew.
"""

Scalar = Callable[[Readout, Readout], Tensor]
"""Maps the readouts of candidate and base to one differentiable value for each sequence, `[sequence]`."""


@dataclass
class GradientEstimator:
    """Estimates how treatments of `model` change `objective` on the sequences of `reference`.

    `is_base` is true if the current weights of the model are those of the base.
    """

    model: Model
    reference: Reference
    treatments: Treatments
    objective: EstimableMetric
    is_base: bool = True
    seed: int = 0

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """The answer to a request; raises ModelError, with the component's name, if a gradient is not finite."""
        self.treatments.check_repeatable(self.model, request.options)
        compressed = self.treatments.compress(self.model, request.at)
        current = {name: make_replacement(weight) for name, weight in compressed.items()}
        gradients = LayerwiseGradients(self.model, list(request.options))
        totals = {name: Total() for name in request.options}
        with self.model.swapped(current) as originals:
            changes = Changes(self.model, self.treatments, request.options, originals)
            chosen = range(len(self.reference.tokens))[request.start : request.stop]
            at_once = gradients.at_once or self._count_at_once(changes)
            for start in chosen[::at_once]:
                rows = self.reference.tokens[start : min(start + at_once, chosen.stop)]
                line, square = (
                    Projections(changes, len(rows), squared, gradients.every_token) for squared in (False, True)
                )
                if count_backward_passes(request, self.is_base) == 2:
                    self._project(gradients, self.objective.value, start, rows, line)
                self._project(gradients, self._probe(start), start, rows, square)
                for name, total in totals.items():
                    total.add(name, line, square)
            if silent := [name for name, total in totals.items() if not total.reached]:
                for name in find_reached(self.model, self.reference, silent, chosen.start, chosen.stop):
                    totals[name].reached = True
        return {name: total.finish(name, request.by_row) for name, total in totals.items()}

    def _count_at_once(self, changes: "Changes") -> int:
        """Sequences in one backward pass: those of a batch, or more where each pass computes the changes again.

        In that case fewer passes save time. The activations of the largest layer, in float32, may then take one byte
        for each parameter of the model.
        """
        if changes.keeps:
            return self.reference.batch
        widths: dict[int | None, int] = {}
        for component in self.model.components.values():
            widths[component.layer] = widths.get(component.layer, 0) + sum(component.shape)
        bytes_of_sequence = 4 * self.reference.tokens.shape[1] * max(widths.values())
        return max(self.reference.batch, self.model.base_parameters // bytes_of_sequence)

    def _probe(self, start: int) -> Scalar:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + start) % 2**63)
        return lambda candidate, base: self.objective.probe(candidate, base, generator)

    def _project(
        self, gradients: LayerwiseGradients, read: Scalar, start: int, rows: Tensor, projections: "Projections"
    ) -> None:
        """Run one backward pass of the values of `read`, and project the gradients on every weight change."""
        base = self.reference.base_readout(start, len(rows))

        def scalar(logits: Tensor) -> Tensor:
            name, reads = self.objective.name, self.objective.reads
            views = Readout(logits, base.tokens).restricted(reads, name), base.restricted(reads, name)
            found = read(*views)
            check_unchanged(self.objective, views)
            check_scalars(self.objective, found, logits)
            return found

        gradients.run_backward(rows[:, :-1], self.reference.continuation_tokens, scalar, projections.add)


def check_scalars(metric: EstimableMetric, found: object, logits: Tensor) -> None:
    """Raise PluginError unless `found` has a finite number for each sequence, with a gradient to the logits."""
    owner, needed = name_plugin(metric), f"a float tensor [{len(logits)}]"
    if not isinstance(found, Tensor):
        raise PluginError(f"{owner} gave {type(found).__name__} as what to differentiate; {needed} is needed")
    is_dense = found.layout is torch.strided and found.device == logits.device
    if found.shape != (len(logits),) or not found.is_floating_point() or not is_dense:
        raise PluginError(
            f"{owner} gave {tuple(found.shape)} {found.dtype}, {found.layout}, on {found.device} as what to "
            f"differentiate; {needed} on {logits.device} is needed"
        )
    if not found.requires_grad:
        raise PluginError(f"{owner} gave values without a gradient; they must be differentiable in the logits")
    if not found.isfinite().all() and logits.isfinite().all():
        raise PluginError(f"{owner} gave NaN or infinity to differentiate, on finite logits; mend the metric")


def count_backward_passes(request: EstimateRequest, is_base: bool) -> int:
    """Backward passes over each sequence: one for the probe, and one for the value if the model is not the base."""
    return 1 if is_base and not request.at else 2


class Changes:
    """The weight changes: what each option adds to the weight of a component, `[option, out, in]` in float32.

    If `keeps` is true, the changes of every component are computed once and kept. Otherwise only those of the last
    component are kept.
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
        elements = sum(self.components[name].parameters * len(chosen) for name, chosen in options.items())
        self.keeps = elements <= KEPT_NUMBERS
        self._kept: dict[str, Tensor] = {}
        self._buffer: Tensor | None = None

    def of(self, name: str) -> Tensor:
        """The changes of a component, relative to the weight that it has now."""
        if name in self._kept:
            return self._kept[name]
        if not self.keeps:
            self._kept.clear()  # the last stays until now: the next sequences of a backward pass ask for the same one
        current = self._model.read(name)
        before_plan = self._originals.get(name, current)
        original = read_untreated(self._model, name) if name in self._model.held else before_plan
        component = self.components[name]
        changes = self._allocate(len(self.options[name]), component.shape, current.device)
        treatments = [treatment for treatment in self.options[name] if treatment is not None]
        compressed = self._treatments.compress_each(component, original, treatments)
        for change, treatment in zip(changes, self.options[name], strict=True):
            weight = before_plan if treatment is None else next(compressed).dense()
            torch.sub(weight.float(), current.float(), out=change)
        self._kept[name] = changes
        return changes

    def _allocate(self, options: int, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Memory for the changes of a component: new if changes are kept, otherwise always the same buffer.

        The buffer saves time: a large new allocation costs more than computing what is stored in it.
        """
        if self.keeps:
            return torch.empty(options, *shape, device=device)
        if self._buffer is None:
            sizes = (len(chosen) * self.components[name].parameters for name, chosen in self.options.items())
            self._buffer = torch.empty(max(sizes), device=device)
        return self._buffer[: options * math.prod(shape)].view(options, *shape)


class Projections:
    """Sums of the projections ⟨gradient, Δ⟩ of every component's rows; on the CPU, in float64.

    `sums` `[sequence, option]` are sums over rows, `squares` `[sequence, option]` sums of the squares over rows, and
    `rows` `[row, option]` sums over sequences, of the squares if `squared` is set. `reached` holds components that a
    token came to for certain: those that see `every_token`, and others that had a gradient other than zero.
    """

    def __init__(self, changes: Changes, sequences: int, squared: bool, every_token: frozenset[str]) -> None:
        self._changes, self._squared = changes, squared
        self.reached = set(every_token)
        self.sums, self.squares, self.rows = {}, {}, {}
        for name, component in changes.components.items():
            options = len(changes.options[name])
            self.sums[name] = torch.zeros(sequences, options, dtype=torch.float64)
            self.squares[name] = torch.zeros(sequences, options, dtype=torch.float64)
            self.rows[name] = torch.zeros(component.shape[0], options, dtype=torch.float64)

    def add(self, name: str, part: slice, gradients: Tensor) -> None:
        """Add the gradients `[sequence, out, in]`, of any dtype, of the sequences `part`."""
        projected = torch.bmm(gradients.float().transpose(0, 1), self._changes.of(name).permute(1, 2, 0)).double()
        squares = projected.square()
        self.sums[name][part] = projected.sum(0).cpu()
        self.squares[name][part] = squares.sum(0).cpu()
        self.rows[name] += (squares if self._squared else projected).sum(1).cpu()
        if name not in self.reached and gradients.any():
            self.reached.add(name)


@dataclass
class Total:
    """The projections of one component: lists of `[sequence, option]`, with an entry for each group of sequences.

    `line` are the projections of the value's gradient. Of the probe's gradient, `square` is the square of the sum over
    rows, `apart` the sum of the squares. `rows` `[row, option]` are sums over all sequences.
    """

    line: list[Tensor] = field(default_factory=list)
    square: list[Tensor] = field(default_factory=list)
    apart: list[Tensor] = field(default_factory=list)
    rows: Tensor | float = 0.0
    reached: bool = False

    def add(self, name: str, line: Projections, square: Projections) -> None:
        """Add a group of sequences: the projections of the value's gradient, and those of the probe's."""
        self.line.append(line.sums[name])
        self.square.append(square.sums[name].square())
        self.apart.append(square.squares[name])
        self.rows = self.rows + line.rows[name] + square.rows[name]
        self.reached = self.reached or name in square.reached

    def finish(self, name: str, by_row: bool) -> Estimate:
        """The estimate; raises ModelError if it is not finite."""
        line, square, apart = (torch.cat(parts).numpy() for parts in (self.line, self.square, self.apart))
        if not np.isfinite(line + square + apart).all():
            raise ModelError(
                f"the gradient of `{name}` holds NaN or infinity; use model.dtype=float32, or exclude it by "
                "components.exclude"
            )
        rows = np.asarray(self.rows) / len(line) if by_row else None
        return Estimate(line + square, rows, self.reached, line + apart, line)
