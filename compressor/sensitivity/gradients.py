"""Visits the layers in reverse: each component's gradient, sequence by sequence, one layer in memory at a time.

The model's own forward pass runs, so every family works. Each decoder layer is a checkpoint: it keeps nothing but its
input, and is computed again when the backward pass comes to it. A tap behind each linear module hears the module's
input x and the gradient d of its output there; the gradient of a sequence's scalar by the weight is Σ_tokens d xᵀ.
Weights that are used otherwise (stacked experts, a tied embedding, a module called twice) get their gradient from
autograd, and experts mix the tokens of sequences: both need one sequence at a time.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compressor.contracts import InputTransform
from compressor.models import Model
from compressor.models.architectures import is_linear, weight_gradient
from compressor.models.components import find_layers
from compressor.models.patching import patched
from compressor.models.weight_views import WeightView

PROBE = (2, 3)
"""Sequences and tokens of the forward pass that finds out how modules are called."""
GRADIENT_NUMBERS = 1 << 22
"""Gradients of several sequences may take so many numbers together, or an eighth of the model's if that is more.

A constant, not a share of the memory budget: it decides which sequences one product takes together, and in which order
their rows are added up, so that rounding depends on it.
"""
Visit = Callable[[str, slice, Tensor], None]
"""Gets a component, which sequences, and the whole gradients `[sequence, out, in]` of their scalars; once each."""


class _Tap(torch.autograd.Function):
    """Passes `outputs` on; on the way back `hear` gets `inputs` and the gradient of the outputs."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, inputs: Tensor, outputs: Tensor, hear: Callable[..., None]) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(inputs)
        ctx.hear = hear
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own
        ctx.hear(*ctx.saved_tensors, *gradients)
        return None, None, gradients[0], None


class LayerwiseGradients:
    """Walks `model` backwards and visits the components `names`.

    `at_once` is how many sequences one walk can take: None for any number, 1 for models that mix sequences.
    """

    def __init__(self, model: Model, names: Collection[str]) -> None:
        self.model = model
        self.places: dict[tuple[int, str], list[WeightView]] = {}
        for name in names:
            weight_view = model.weight_views[name]
            self.places.setdefault((id(weight_view.owner), weight_view.attribute), []).append(weight_view)
        uses = Counter(id(parameter) for _, parameter in model.network.named_parameters(remove_duplicate=False))
        shapes = self._probe()
        self.tapped = {
            place
            for place, weight_views in self.places.items()
            if len(shapes[place]) == 1 and is_linear(weight_views[0].owner) and uses[id(weight_views[0].parameter)] == 1
        }
        apart = all(shapes[place][0][:2] == PROBE and len(shapes[place][0]) > 2 for place in self.tapped)
        self.at_once = None if apart and len(self.tapped) == len(self.places) else 1

    def back(self, tokens: Tensor, keep: int, scalar: Callable[[Tensor], Tensor], visit: Visit) -> None:
        """Visit every component with the gradients of `scalar`'s values.

        `tokens` are `[sequence, length]`; `scalar` takes the logits `[sequence, keep, vocabulary]` at the last `keep`
        of them to one value for each sequence, `[sequence]`, independent of the other sequences.
        """
        with ExitStack() as stack, torch.enable_grad():
            anchor = torch.zeros((), device=self.model.device, requires_grad=True)
            for place, weight_views in self.places.items():
                if place in self.tapped:
                    stack.enter_context(self._tapped(weight_views, anchor, visit))
                else:
                    stack.enter_context(self._watched(weight_views, visit))
            stack.enter_context(checkpointed(find_layers(self.model.network)[1]))
            scalar(self.model.traced_logits(tokens, keep)).sum().backward()

    def _probe(self) -> dict[tuple[int, str], list[torch.Size]]:
        """Shapes of what each module is called with in a short forward pass; weights may be used without a call."""
        shapes: dict[tuple[int, str], list[torch.Size]] = {place: [] for place in self.places}

        def note(place: tuple[int, str], inputs: tuple[Tensor, ...]) -> None:
            if inputs:
                shapes[place].append(inputs[0].shape)

        with ExitStack() as stack:
            for place, weight_views in self.places.items():
                hook = functools.partial(lambda place, _, inputs: note(place, inputs), place)
                handle = weight_views[0].owner.register_forward_pre_hook(hook)
                stack.callback(handle.remove)
            self.model.logits(torch.zeros(PROBE, dtype=torch.long), 1)
        return shapes

    @contextmanager
    def _tapped(self, weight_views: list[WeightView], anchor: Tensor, visit: Visit) -> Iterator[None]:
        """A tap behind the linear module of these components."""
        limit = max(GRADIENT_NUMBERS, self.model.base_parameters // 8)

        def hear(inputs: Tensor, gradients: Tensor) -> None:
            count = 1 if self.at_once == 1 else len(inputs)
            x, d = (part.reshape(count, -1, part.shape[-1]) for part in (inputs, gradients))
            step = max(1, limit // (x.shape[-1] * d.shape[-1]))
            for start in range(0, count, step):
                rows = slice(start, min(count, start + step))
                for input_transform, parts in self._sort_by_treat(weight_views):
                    seen = x[rows] if input_transform is None else input_transform(x[rows])
                    self._visit_parts(parts, rows, weight_gradient(weight_views[0].owner, seen, d[rows]), visit)

        def tap(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
            tapped: Tensor = _Tap.apply(anchor, inputs[0], outputs, hear)  # type: ignore[no-untyped-call]
            return tapped

        handle = weight_views[0].owner.register_forward_hook(tap)
        try:
            yield
        finally:
            handle.remove()

    def _sort_by_treat(self, weight_views: list[WeightView]) -> list[tuple[InputTransform | None, list[WeightView]]]:
        """Components of a matrix that are multiplied with the same inputs."""
        groups: dict[int, tuple[InputTransform | None, list[WeightView]]] = {}
        for weight_view in weight_views:
            input_transform = self.model.input_transforms.find(weight_view.component.name)
            groups.setdefault(id(input_transform), (input_transform, []))[1].append(weight_view)
        return [*groups.values()]

    @contextmanager
    def _watched(self, weight_views: list[WeightView], visit: Visit) -> Iterator[None]:
        """Autograd's own gradient of a parameter, taken away as soon as it is there."""
        parameter = weight_views[0].parameter

        def take(accumulated: Tensor) -> None:
            gradient, accumulated.grad = accumulated.grad, None
            assert gradient is not None
            self._visit_parts(weight_views, slice(0, 1), gradient[None], visit)

        parameter.requires_grad_(True)
        handle = parameter.register_post_accumulate_grad_hook(take)
        try:
            yield
        finally:
            handle.remove()
            parameter.requires_grad_(False)
            parameter.grad = None

    def _visit_parts(self, weight_views: list[WeightView], rows: slice, gradients: Tensor, visit: Visit) -> None:
        """Each component's part of the gradients `[sequence, *parameter]` of the matrix that holds it."""
        with torch.no_grad():
            for weight_view in weight_views:
                parts = torch.vmap(weight_view.part)(gradients)
                visit(weight_view.component.name, rows, parts.reshape(len(gradients), *weight_view.component.shape))


@contextmanager
def checkpointed(layers: nn.ModuleList) -> Iterator[None]:
    """Inside, each layer keeps only its input for the backward pass, and is computed again there."""
    run = functools.partial(functools.partial, checkpoint)
    with patched({layer: run(layer.forward, use_reentrant=False, preserve_rng_state=False) for layer in layers}):
        yield
