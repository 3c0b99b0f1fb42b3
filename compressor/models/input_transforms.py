"""Input transforms: functions that change a component's inputs, such as rounding of activations, and their forward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.contracts import InputTransform
from compressor.models.matmul_inputs import MatmulInputs, expert_by_expert
from compressor.models.matmul_transform import MatmulTransform, Treated
from compressor.models.patching import patched
from compressor.models.weight_views import WeightView


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
        """Bytes of the weight."""
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
        """The components that have an input transform."""
        return [name for name, input_transform in self._transforms.items() if input_transform is not None]

    def find(self, name: str) -> InputTransform | None:
        """The input transform of a component, if it has one."""
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
    with expert_by_expert(module), products:
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
