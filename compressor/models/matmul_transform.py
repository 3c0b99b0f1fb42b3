"""Applies input transforms in matrix products: t(x) Wᵀ in place of x Wᵀ, for the rows of each component.

As for calibration data (`matmul_inputs`), this does not depend on modules: a projection, some rows of a fused matrix,
one expert of a stack and a tied LM head are all a product with a view of the component's parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, has_torch_function

from compressor.contracts import InputTransform
from compressor.models.matmul_inputs import PRODUCTS
from compressor.models.weight_views import WeightView

Treated = tuple[WeightView, InputTransform | None]
"""A component and its input transform, if it has one."""
Rows = Sequence[tuple[InputTransform, Tensor | None]]
"""Input transforms, each with a mask of the rows `[..., out]` that have it; None is all rows."""


class MatmulTransform(TorchFunctionMode):
    """Inside, input transforms are applied in products with components, for the rows of these components only.

    `treated` are the components by the id of their parameter. A torch function mode outside of this one sees each
    product once, with the inputs before the transform.
    """

    def __init__(self, treated: Mapping[int, Sequence[Treated]]) -> None:
        super().__init__()
        self._treated = treated
        self._assigned: dict[tuple[Any, ...], Rows] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own
        named = kwargs or {}

        def multiply(factors: Sequence[Any]) -> Any:  # noqa: ANN401 - torch's own
            return function(*factors[: len(args)], **dict(zip(named, factors[len(args) :], strict=True)))

        if function in PRODUCTS:
            first, transposes = PRODUCTS[function]
            factors = [*args, *named.values()]
            with torch._C.DisableTorchFunction():
                # Either factor may be the weight.
                right = self._find_rows(factors[first + 1], not transposes)
                left = [] if right else self._find_rows(factors[first], False)
                is_turned = bool(left) and not transposes and factors[first + 1].dim() > 1
            if right or left:
                return self._multiply(multiply, factors, first + bool(left), right or left, bool(left), is_turned)
        return function(*args, **named)

    def _multiply(
        self,
        multiply: Callable[[Sequence[Any]], Tensor],
        factors: Sequence[Any],
        place: int,
        rows: Rows,
        is_left: bool,
        is_turned: bool,
    ) -> Tensor:
        """The product of `factors`, with transformed inputs for these `rows` of the matrix.

        The inputs are `factors[place]`: `[..., token, in]`, or `[..., in, token]` if `is_turned`. If the matrix is on
        the left, its rows are rows of the product, else they are columns.
        """
        inputs: Tensor = factors[place]
        is_silent = rows[0][1] is None and not has_torch_function((inputs,))
        result = None if is_silent else multiply(factors)
        with torch._C.DisableTorchFunction():
            for input_transform, own in rows:
                treated = (
                    _pass_through(input_transform, inputs.mT).mT
                    if is_turned
                    else _pass_through(input_transform, inputs)
                )
                product = multiply([*factors[:place], treated, *factors[place + 1 :]])
                if own is None or result is None:
                    return product
                mask = own if inputs.dim() == 1 else own[..., None] if is_left else own[..., None, :]
                result = torch.where(mask, product, result)
        assert result is not None
        return result

    def _find_rows(self, factor: Tensor, is_turned: bool) -> Rows:
        """The rows of a factor, which is `[..., in, out]` if `is_turned`; none if it belongs to no component."""
        base = factor if factor._base is None else factor._base
        if id(base) not in self._treated or factor.dim() < 2:
            return []
        matrices = factor.mT if is_turned else factor
        start = int(matrices.storage_offset()) - int(base.storage_offset())
        key = (id(base), start, matrices.shape, matrices.stride())
        if key not in self._assigned:
            self._assigned[key] = assign_rows(matrices, start, self._treated[id(base)])
        return self._assigned[key]


def assign_rows(matrices: Tensor, start: int, treated: Sequence[Treated]) -> Rows:
    """The rows of `matrices` `[..., out, in]` that belong to components with an input transform.

    `start` is the offset of the matrices in their parameter. Of components that share a row, the last one counts.
    """
    owner = torch.full(matrices.shape[:-1], -1)
    places = list_places(matrices.shape[:-1], matrices.stride()[:-1], start)
    transforms: list[InputTransform] = []
    for weight_view, input_transform in treated:
        view = weight_view.view()
        if view.shape[-1] != matrices.shape[-1] or view.stride(-1) != matrices.stride(-1):
            continue
        offset = int(view.storage_offset()) - int(weight_view.parameter.storage_offset())
        own = list_places(view.shape[:-1], view.stride()[:-1], offset).flatten()
        number = next((number for number, known in enumerate(transforms) if known is input_transform), len(transforms))
        if input_transform is not None and number == len(transforms):
            transforms.append(input_transform)
        owner[torch.isin(places, own)] = -1 if input_transform is None else number
    found = [(input_transform, owner == number) for number, input_transform in enumerate(transforms)]
    return [
        (input_transform, None if rows.all() else rows.to(matrices.device))
        for input_transform, rows in found
        if rows.any()
    ]


def list_places(shape: Sequence[int], strides: Sequence[int], start: int) -> Tensor:
    """`[*shape]`: the offsets of rows with these strides."""
    places = torch.tensor(start)
    for size, stride in zip(shape, strides, strict=True):
        places = places[..., None] + stride * torch.arange(size)
    return places


class _PassThrough(torch.autograd.Function):
    """Applies an input transform; its gradient is passed through unchanged, because that of rounding is zero."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, input_transform: InputTransform) -> Tensor:  # noqa: ANN401 - torch's own
        return input_transform(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own
        return gradients[0], None


def _pass_through(input_transform: InputTransform, inputs: Tensor) -> Tensor:
    treated: Tensor = _PassThrough.apply(inputs, input_transform)  # type: ignore[no-untyped-call]
    return treated
