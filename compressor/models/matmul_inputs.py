"""Watches the matrix products of a forward pass: what every component's matrix is multiplied with.

Modules are not asked: a projection, a slice of a stack of experts and a tied LM head are all a product with a view of
the component's parameter, and torch tells of every product before it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from compressor.models.architectures import is_linear
from compressor.models.weight_views import WeightView

PRODUCTS: dict[Any, tuple[int, bool]] = {
    functional.linear: (0, True),
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm, torch.mv), (0, False)),
    **dict.fromkeys((Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.__matmul__), (0, False)),
    **dict.fromkeys((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), (1, False)),
}
"""Function -> where its two factors begin among the arguments, and whether it transposes the second one."""

IMPLEMENTATION = "_experts_implementation_internal"
"""What a config of transformers calls the way in which its stacked experts are multiplied."""
Hear = Callable[[Sequence[str], Tensor], None]
"""Gets components that share a product, and what they are multiplied with, `[token, in]`."""


class MatmulInputs(TorchFunctionMode):
    """Inside, `hear` gets the inputs `[token, in]` of every product with the matrix of a component of `slots`.

    A component is heard of once for each product, and not at all where no token comes to it. `used` and `seen` are the
    components whose parameter was used in any way, and those whose parameter was seen in a product.
    """

    def __init__(self, weight_views: Mapping[str, WeightView], hear: Hear) -> None:
        super().__init__()
        self._hear = hear
        self._slots: dict[int, list[tuple[str, WeightView]]] = {}
        for name, weight_view in weight_views.items():
            self._slots.setdefault(id(weight_view.parameter), []).append((name, weight_view))
        self._found: dict[tuple[Any, ...], list[str]] = {}
        self._used: set[int] = set()
        self._seen: set[int] = set()

    @property
    def used(self) -> set[str]:
        return self._names(self._used)

    @property
    def seen(self) -> set[str]:
        return self._names(self._seen)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own
        values = [*args, *(kwargs or {}).values()]
        if function in PRODUCTS:
            start, transposes = PRODUCTS[function]
            self._look(values[start], values[start + 1], transposes)
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):  # asking for a dtype or a shape is no use
            self._used.update(id(value) for value in values if id(value) in self._slots)
        return result

    def _look(self, first: Tensor, second: Tensor, transposes: bool) -> None:
        """Either factor may be the weight; both are turned so that the sum is over their last dimensions."""
        other = second if transposes or second.dim() < 2 else second.mT
        for weight, inputs in ((other, first), (first, other)):
            base = weight if weight._base is None else weight._base
            if id(base) in self._slots and weight.dim() >= 2:
                self._seen.add(id(base))
                for matrix, rows in pair_matrices(weight, inputs):
                    names = self._find(base, matrix)
                    if names and rows.numel():
                        self._hear(names, rows)

    def _find(self, parameter: Tensor, matrix: Tensor) -> list[str]:
        """The components that lie in `matrix` `[out, in]`, a view of the parameter, with the same `in`."""
        start = matrix.storage_offset() - parameter.storage_offset()
        key = (id(parameter), start, matrix.shape, matrix.stride())
        if key not in self._found:
            lowest, highest = find_extent(matrix)
            self._found[key] = []
            for name, weight_view in self._slots[id(parameter)]:
                view = weight_view.view()
                low, high = find_extent(view)
                if (
                    lowest <= low <= high <= highest
                    and view.shape[-1] == matrix.shape[-1]
                    and view.stride(-1) == matrix.stride(-1)
                ):
                    self._found[key].append(name)
        return self._found[key]

    def _names(self, parameters: set[int]) -> set[str]:
        return {name for key in parameters for name, _ in self._slots[key]}


def pair_matrices(weight: Tensor, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The matrices `[out, in]` of `weight` `[..., out, in]`, each with all that it is multiplied with, `[token, in]`.

    `inputs` `[..., token, in]` are paired with the weights as torch broadcasts batches of matrices.
    """
    if weight.dim() == 2:
        yield weight, inputs.reshape(-1, inputs.shape[-1])
        return
    batch = weight.shape[:-2]
    shape = torch.broadcast_shapes(inputs.shape[:-2], batch)
    rows = inputs.expand(*shape, *inputs.shape[-2:]).reshape(-1, *batch, *inputs.shape[-2:])
    rows = rows.movedim(0, -3).reshape(-1, rows.shape[0] * rows.shape[-2], rows.shape[-1])
    yield from zip(weight.flatten(0, -3), rows, strict=True)


def find_extent(view: Tensor) -> tuple[int, int]:
    """The first and the last place of a view in its storage."""
    start = int(view.storage_offset())
    return start, start + sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True))


@contextmanager
def experts_apart(network: PreTrainedModel, weight_views: Mapping[str, WeightView]) -> Iterator[None]:
    """Inside, stacked experts are multiplied one by one, where the family lets one choose; a fused kernel shows none.

    Nothing is switched for components that are all modules of their own.
    """
    if all(is_linear(weight_view.owner) for weight_view in weight_views.values()):
        yield
        return
    before = network.get_experts_implementation()
    network.set_experts_implementation("eager")
    try:
        yield
    finally:
        network.set_experts_implementation(before)


@contextmanager
def expert_by_expert(module: nn.Module) -> Iterator[None]:
    """Inside, the stacked experts of a module are multiplied one by one; nothing happens for other modules."""
    config = getattr(module, "config", None)
    before = getattr(config, IMPLEMENTATION, None)
    if before is None or is_linear(module):
        yield
        return
    setattr(config, IMPLEMENTATION, "eager")
    try:
        yield
    finally:
        setattr(config, IMPLEMENTATION, before)
