"""Gradients of every component for each sequence, from one backward pass that keeps one layer in memory at a time.

The model's own forward pass runs, so every family works. Each decoder layer is checkpointed: it stores only its input,
and is computed again when the backward pass reaches it. For a linear module, a hook stores its input x, and the
backward pass gives the gradient d of its output; a sequence's gradient of the weight is then Σ_tokens d xᵀ.

Weights that are used in another way (stacked experts, a tied embedding, a module that is called twice) get their
gradient from autograd, which adds up sequences. Modules of experts receive the tokens of all sequences together. In
both cases a backward pass takes one sequence only.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.contracts import InputTransform
from compressor.models import Model
from compressor.models.architectures import is_linear, weight_gradient
from compressor.models.components import find_layers
from compressor.models.forward import checkpointed
from compressor.models.input_transforms import transform_inputs
from compressor.models.weight_views import WeightView

PROBE = (2, 3)
"""Sequences and tokens of the short forward pass that shows how modules are called."""
GRADIENT_NUMBERS = 1 << 22
"""The largest number of elements in the gradients of several sequences; an eighth of the model's, if that is more.

It is a constant, not a share of the memory budget: it decides which sequences are in one matrix product and in which
order their gradients are added up, and rounding depends on that.
"""
PASSES_OF_BACKWARD = 4
"""One backward pass costs about four forward passes: forward, recomputation layer by layer, and the gradients of inputs
and weights."""
Visit = Callable[[str, slice, Tensor], None]
"""Called once for each component and slice of sequences, with the gradients `[sequence, out, in]` of these."""


class _CaptureGradient(torch.autograd.Function):
    """Returns `outputs`; in the backward pass, `receive` is called with `inputs` and the gradient of the outputs.

    `anchor` requires a gradient, so that the backward pass comes here although no input may require one.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, inputs: Tensor, outputs: Tensor, receive: Callable[..., None]) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(inputs)
        ctx.receive = receive
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own
        ctx.receive(*ctx.saved_tensors, *gradients)
        return None, None, gradients[0], None


class LayerwiseGradients:
    """Computes the gradients of the components `names` of `model`, one layer after the other.

    `at_once` is the largest number of sequences in one backward pass: None is any number, 1 is for models whose
    modules mix the tokens of sequences. `every_token` are the components whose input is every token of every sequence,
    so that a gradient of zero means that nothing can be lost by them.
    """

    def __init__(self, model: Model, names: Collection[str]) -> None:
        self.model = model
        self.places: dict[tuple[int, str], list[WeightView]] = {}
        for name in names:
            weight_view = model.weight_views[name]
            self.places.setdefault((id(weight_view.owner), weight_view.attribute), []).append(weight_view)
        uses = Counter(id(parameter) for _, parameter in model.network.named_parameters(remove_duplicate=False))
        shapes = self._find_input_shapes()
        self.captured = {
            place
            for place, weight_views in self.places.items()
            if len(shapes[place]) == 1 and is_linear(weight_views[0].owner) and uses[id(weight_views[0].parameter)] == 1
        }
        dense = {place for place in self.captured if shapes[place][0][:2] == PROBE and len(shapes[place][0]) > 2}
        self.every_token = frozenset(view.component.name for place in dense for view in self.places[place])
        keeps_sequences = dense == self.captured
        self.at_once = None if keeps_sequences and len(self.captured) == len(self.places) else 1

    def run_backward(self, tokens: Tensor, keep: int, scalar: Callable[[Tensor], Tensor], visit: Visit) -> None:
        """Run one backward pass over `tokens` `[sequence, length]`, and call `visit` with the gradients.

        `scalar` maps the logits `[sequence, keep, vocabulary]` at the last `keep` positions to one value for each
        sequence, `[sequence]`. A sequence's value must not depend on the other sequences.
        """
        with ExitStack() as stack, torch.enable_grad():
            anchor = torch.zeros((), device=self.model.device, requires_grad=True)
            for place, weight_views in self.places.items():
                if place in self.captured:
                    stack.callback(self._capture(weight_views, anchor, visit).remove)
                else:
                    stack.enter_context(self._accumulating(weight_views, visit))
            stack.enter_context(checkpointed(find_layers(self.model.network)[1]))
            scalar(self.model.traced_logits(tokens, keep)).sum().backward()

    def _find_input_shapes(self) -> dict[tuple[int, str], list[torch.Size]]:
        """The input shapes of each module in a short forward pass, one for each call.

        The list is empty for a module whose weights are used without a call of the module.
        """
        shapes: dict[tuple[int, str], list[torch.Size]] = {place: [] for place in self.places}

        def note(place: tuple[int, str], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs:
                shapes[place].append(inputs[0].shape)

        with ExitStack() as stack:
            for place, weight_views in self.places.items():
                handle = weight_views[0].owner.register_forward_pre_hook(functools.partial(note, place))
                stack.callback(handle.remove)
            self.model.logits(torch.zeros(PROBE, dtype=torch.long), 1)
        return shapes

    def _capture(self, weight_views: list[WeightView], anchor: Tensor, visit: Visit) -> RemovableHandle:
        """Capture the inputs and output gradients of the linear module of these components, by a hook."""
        limit = max(GRADIENT_NUMBERS, self.model.base_parameters // 8)

        def receive(inputs: Tensor, gradients: Tensor) -> None:
            count = 1 if self.at_once == 1 else len(inputs)
            x, d = (part.reshape(count, -1, part.shape[-1]) for part in (inputs, gradients))
            step = max(1, limit // (x.shape[-1] * d.shape[-1]))
            for start in range(0, count, step):
                rows = slice(start, min(count, start + step))
                for input_transform, parts in self._group_by_transform(weight_views):
                    name, transformed = parts[0].component.name, x[rows]
                    if input_transform is not None:
                        transformed = transform_inputs(transformed, input_transform, name)
                    self._visit_parts(parts, rows, weight_gradient(weight_views[0].owner, transformed, d[rows]), visit)

        def capture(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
            captured: Tensor = _CaptureGradient.apply(anchor, inputs[0], outputs, receive)  # type: ignore[no-untyped-call]
            return captured

        return weight_views[0].owner.register_forward_hook(capture)

    def _group_by_transform(
        self, weight_views: list[WeightView]
    ) -> list[tuple[InputTransform | None, list[WeightView]]]:
        """The components of one matrix, grouped by the input transform that they have now."""
        groups: list[tuple[InputTransform | None, list[WeightView]]] = []
        for weight_view in weight_views:
            input_transform = self.model.input_transforms.find(weight_view.component.name)
            parts = next((parts for known, parts in groups if known == input_transform), None)
            if parts is None:
                groups.append((input_transform, [weight_view]))
            else:
                parts.append(weight_view)
        return groups

    @contextmanager
    def _accumulating(self, weight_views: list[WeightView], visit: Visit) -> Iterator[None]:
        """Inside, autograd computes the gradient of a parameter; it is freed as soon as it was visited."""
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
        """Visit each component with its part of the gradients `[sequence, *parameter]` of a whole parameter."""
        with torch.no_grad():
            for weight_view in weight_views:
                parts = torch.vmap(weight_view.part)(gradients)
                visit(weight_view.component.name, rows, parts.reshape(len(gradients), *weight_view.component.shape))
