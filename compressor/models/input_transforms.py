"""Input transforms: functions that change a component's inputs, such as rounding of activations.

In a matrix product they give t(x) Wᵀ in place of x Wᵀ, for the rows of each component. As for calibration data
(`matmul_inputs`), this does not depend on modules: a projection, some rows of a fused matrix, one expert of a stack and
a tied LM head are all a product with a view of the component's parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, has_torch_function
from transformers import PreTrainedModel

from compressor.contracts import Compressor, InputTransform
from compressor.contracts.guard import Guard, name_plugin
from compressor.errors import PluginError
from compressor.models.matmul_inputs import PRODUCTS, MatmulInputs, experts_apart
from compressor.models.patching import patched
from compressor.models.weight_views import WeightView

Treated = tuple[WeightView, InputTransform | None]
"""A component and its input transform, if it has one."""
Rows = Sequence[tuple[str, InputTransform, Tensor | None]]
"""Input transforms, each with a component that has it, and a mask of the rows `[..., out]`; None is all rows."""


@dataclass(frozen=True, eq=False)
class OwnedTransform:
    """An input transform of a plugin, and the compressor that gave it, which errors name."""

    transform: InputTransform
    compressor: Compressor

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.transform(inputs)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same function. A comparison of the functions would call code of the plugin."""
        return isinstance(other, OwnedTransform) and self.transform is other.transform

    def __hash__(self) -> int:
        return id(self.transform)


@dataclass(frozen=True)
class Replacement:
    """A new weight `[out, in]`, and the transform of the inputs `[..., in]` that it is multiplied with, if any."""

    weight: Tensor
    input_transform: InputTransform | None = None

    @classmethod
    def of(cls, weight: Tensor | Replacement) -> Replacement:
        """A tensor as a replacement without an input transform; a replacement as it is."""
        return weight if isinstance(weight, Replacement) else cls(weight)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


class InputTransforms:
    """The input transforms of a network's components.

    A module whose parameter belongs to such a component gets another forward function, which applies the transform. The
    other modules are not changed.
    """

    def __init__(self, network: nn.Module, weight_views: Mapping[str, WeightView]) -> None:
        self._network, self._weight_views = network, weight_views
        self._transforms: dict[str, InputTransform | None] = {}
        self._installed = ExitStack()

    def __bool__(self) -> bool:
        """Does any component have an input transform?"""
        return bool(self._transforms)

    @property
    def names(self) -> list[str]:
        return [name for name, input_transform in self._transforms.items() if input_transform is not None]

    def find(self, name: str) -> InputTransform | None:
        return self._transforms.get(name)

    def put(self, transforms: Mapping[str, InputTransform | None]) -> None:
        """Set the input transforms of these components; of components that share memory, the last one counts."""
        others = {name: transform for name, transform in self._transforms.items() if name not in transforms}
        self._set(others | dict(transforms))

    @contextmanager
    def swapped(self, transforms: Mapping[str, InputTransform | None]) -> Iterator[None]:
        """Inside, these components have the given input transforms; afterwards they have those that they had."""
        before = self._transforms
        try:
            self.put(transforms)
            yield
        finally:
            self._set(before)

    def only(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Inside, only these components keep their input transforms."""
        return self.swapped({name: None for name in self.names if name not in names})

    def _set(self, transforms: dict[str, InputTransform | None]) -> None:
        transforms = transforms if any(transform is not None for transform in transforms.values()) else {}
        if not transforms and not self._transforms:
            return
        self._installed.close()
        self._transforms = transforms
        self._installed.enter_context(_transforming(self._network, self._weight_views, transforms))


@contextmanager
def _transforming(
    network: nn.Module, weight_views: Mapping[str, WeightView], transforms: Mapping[str, InputTransform | None]
) -> Iterator[None]:
    """Inside, modules whose parameters belong to components with an input transform apply it in their products."""
    by_parameter: dict[int, list[Treated]] = {}
    for name, input_transform in transforms.items():
        by_parameter.setdefault(id(weight_views[name].parameter), []).append((weight_views[name], input_transform))
    wanted = {
        key: own for key, own in by_parameter.items() if any(input_transform is not None for _, input_transform in own)
    }
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for module in network.modules():
        held = {id(parameter) for parameter in module.parameters(recurse=False)} & wanted.keys()
        if held:
            products = MatmulTransform({key: wanted[key] for key in held})
            forwards[module] = partial(_run_transformed, module, module.forward, products)
    with patched(forwards):
        yield


def _run_transformed(
    module: nn.Module,
    own: Callable[..., Any],
    products: MatmulTransform,
    *args: Any,  # noqa: ANN401 - whatever a module takes and gives
    **named: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    with experts_apart([module]), products:
        return own(*args, **named)


def find_untransformable(
    network: PreTrainedModel, weight_views: Mapping[str, WeightView], run: Callable[[], object]
) -> set[str]:
    """The components whose inputs a transform would not reach in all their uses, found in a forward pass by `run`."""
    places = {
        name: (id(weight_view.parameter), int(weight_view.view().storage_offset()))
        for name, weight_view in weight_views.items()
    }
    reached, multiplied = Counter[tuple[int, int]](), Counter[str]()

    def note_transform(name: str, inputs: Tensor) -> Tensor:
        reached[places[name]] += 1
        return inputs

    def note_product(names: Collection[str], inputs: Tensor) -> None:
        multiplied.update(names)

    products = MatmulInputs(weight_views, note_product)
    with _transforming(network, weight_views, {name: partial(note_transform, name) for name in weight_views}), products:
        run()
    seen = {parameter for parameter, _ in reached}
    return {name for name in products.used if places[name][0] not in seen or reached[places[name]] < multiplied[name]}


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
        is_silent = rows[0][2] is None and not has_torch_function((inputs,))
        result = None if is_silent else multiply(factors)
        with torch._C.DisableTorchFunction():
            tokens = inputs.mT if is_turned else inputs
            for name, input_transform, own in rows:
                treated: Tensor = _PassThrough.apply(tokens, input_transform, name)  # type: ignore[no-untyped-call]
                treated = treated.mT if is_turned else treated
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
    transforms: list[tuple[str, InputTransform]] = []
    for weight_view, input_transform in treated:
        view = weight_view.view()
        if view.shape[-1] != matrices.shape[-1] or view.stride(-1) != matrices.stride(-1):
            continue
        offset = int(view.storage_offset()) - int(weight_view.parameter.storage_offset())
        own = list_places(view.shape[:-1], view.stride()[:-1], offset).flatten()
        numbers = (number for number, (_, known) in enumerate(transforms) if known == input_transform)
        number = next(numbers, len(transforms))
        if input_transform is not None and number == len(transforms):
            transforms.append((weight_view.component.name, input_transform))
        owner[torch.isin(places, own)] = -1 if input_transform is None else number
    found = [(*transform, owner == number) for number, transform in enumerate(transforms)]
    return [
        (name, input_transform, None if rows.all() else rows.to(matrices.device))
        for name, input_transform, rows in found
        if rows.any()
    ]


def list_places(shape: Sequence[int], strides: Sequence[int], start: int) -> Tensor:
    """`[*shape]`: the offsets of rows with these strides."""
    places = torch.tensor(start)
    for size, stride in zip(shape, strides, strict=True):
        places = places[..., None] + stride * torch.arange(size)
    return places


def transform_inputs(inputs: Tensor, input_transform: InputTransform, component: str) -> Tensor:
    """The transformed inputs of a component; raises PluginError if they cannot stand in for `inputs`.

    Everything is checked on the host: a device does not wait.
    """
    version = None if inputs.is_inference() else inputs._version
    owning = input_transform.compressor if isinstance(input_transform, OwnedTransform) else input_transform
    with Guard(owning, "input_transform", component):
        found: object = input_transform(inputs)
    owner = f"the input transform of {component}, {name_plugin(owning)},"
    if not isinstance(found, Tensor):
        raise PluginError(f"{owner} gave {type(found).__name__}; a tensor {tuple(inputs.shape)} is needed")
    wanted, given = ((x.shape, x.dtype, x.device, x.layout) for x in (inputs, found))
    if wanted != given:
        raise PluginError(
            f"{owner} gave {tuple(found.shape)} {found.dtype}, {found.layout}, on {found.device}; the inputs are "
            f"{tuple(inputs.shape)} {inputs.dtype}, {inputs.layout}, on {inputs.device}"
        )
    if version is not None and inputs._version != version:
        raise PluginError(f"{owner} changed its inputs, which other components read too; work on a copy")
    return found


class _PassThrough(torch.autograd.Function):
    """Applies an input transform; its gradient is passed through unchanged, because that of rounding is zero."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, input_transform: InputTransform, component: str) -> Tensor:  # noqa: ANN401
        return transform_inputs(inputs, input_transform, component)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own
        return gradients[0], None, None
