"""Observes the matrix products of a forward pass: the inputs of every component's matrix.

It does not depend on modules. A projection, one expert of a stack and a tied LM head are all a matrix product with a
view of the component's parameter, and a torch function mode sees every product before it is computed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from compressor.models.architectures import is_linear
from compressor.models.weight_views import WeightView

PRODUCTS: dict[Any, tuple[int, bool]] = {
    functional.linear: (0, True),
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm, torch.mv), (0, False)),
    **dict.fromkeys((Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.__matmul__), (0, False)),
    **dict.fromkeys((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), (1, False)),
}
"""Function -> index of the first of its two factors, and whether the function transposes the second one."""

IMPLEMENTATION = "_experts_implementation_internal"
"""The field of a transformers config that chooses the kernel for stacked experts."""
Receive = Callable[[Sequence[str], Tensor], None]
"""Called with the components of a product, and their inputs `[token, in]`."""


class MatmulInputs(TorchFunctionMode):
    """Inside, `receive` is called with the inputs `[token, in]` of every product with a component of `weight_views`.

    It is called once for each product, and not for a product of no tokens. `used` are the components whose parameter
    was used in any operation, `seen` those whose parameter was used in a matrix product.
    """

    def __init__(self, weight_views: Mapping[str, WeightView], receive: Receive) -> None:
        super().__init__()
        self._receive = receive
        self._by_parameter: dict[int, list[tuple[str, WeightView]]] = {}
        for name, weight_view in weight_views.items():
            self._by_parameter.setdefault(id(weight_view.parameter), []).append((name, weight_view))
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
        if isinstance(result, Tensor):  # reading a dtype or a shape does not count
            self._used.update(id(value) for value in values if id(value) in self._by_parameter)
        return result

    def _look(self, first: Tensor, second: Tensor, transposes: bool) -> None:
        """Find the weight among two factors; both are transposed so that the sum is over their last dimensions."""
        other = second if transposes or second.dim() < 2 else second.mT
        for weight, inputs in ((other, first), (first, other)):
            base = weight if weight._base is None else weight._base
            if id(base) in self._by_parameter and weight.dim() >= 2:
                self._seen.add(id(base))
                for matrix, rows in pair_matrices(weight, inputs):
                    names = self._find(base, matrix)
                    if names and rows.numel():
                        self._receive(names, rows)

    def _find(self, parameter: Tensor, matrix: Tensor) -> list[str]:
        """The components that are part of `matrix` `[out, in]`, a view of the parameter, and have the same `in`."""
        start = matrix.storage_offset() - parameter.storage_offset()
        key = (id(parameter), start, matrix.shape, matrix.stride())
        if key not in self._found:
            lowest, highest = find_extent(matrix)
            self._found[key] = []
            for name, weight_view in self._by_parameter[id(parameter)]:
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
        return {name for key in parameters for name, _ in self._by_parameter[key]}


def pair_matrices(weight: Tensor, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each matrix `[out, in]` of `weight` `[..., out, in]`, with its inputs `[token, in]`.

    `inputs` `[..., token, in]` are paired with the matrices as torch broadcasts batches.
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
    """The first and the last index of a view in its storage."""
    start = int(view.storage_offset())
    return start, start + sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True))


@contextmanager
def experts_apart(owners: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, each stacked expert of these modules has a matrix product of its own.

    A fused kernel for all experts would hide the products. Modules that share their config change too.
    """
    configs = [getattr(owner, "config", None) for owner in owners if not is_linear(owner)]
    chosen = [(config, getattr(config, IMPLEMENTATION, None)) for config in configs]
    before = {id(config): (config, kernel) for config, kernel in chosen if kernel is not None}
    try:
        for config, _ in before.values():
            setattr(config, IMPLEMENTATION, "eager")
        yield
    finally:
        for config, kernel in before.values():
            setattr(config, IMPLEMENTATION, kernel)
