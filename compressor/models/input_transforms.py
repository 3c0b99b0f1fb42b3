"""Which components of a model treat their inputs, and the forward passes that do it for them."""

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
    """A weight `[out, in]`, and what becomes of the inputs `[..., in]` that it is multiplied with: None leaves them."""

    weight: Tensor
    input_transform: InputTransform | None = None

    @classmethod
    def of(cls, weight: Tensor | Replacement) -> Replacement:
        """A mere weight leaves its inputs as they are."""
        return weight if isinstance(weight, Replacement) else cls(weight)

    @property
    def nbytes(self) -> int:
        """Of the weight."""
        return self.weight.nbytes


class InputTransforms:
    """Which components of a network treat their inputs, and the forward passes that do it for them.

    A module that holds the parameter of such a component computes by another forward; the others are let be.
    """

    def __init__(self, network: nn.Module, weight_views: Mapping[str, WeightView]) -> None:
        self._network, self._slots = network, weight_views
        self._given: dict[str, InputTransform | None] = {}
        self._installed = ExitStack()

    def __bool__(self) -> bool:
        """Does any component treat its inputs?"""
        return bool(self._given)

    @property
    def names(self) -> list[str]:
        """The components that treat their inputs."""
        return [name for name, input_transform in self._given.items() if input_transform is not None]

    def find(self, name: str) -> InputTransform | None:
        """What becomes of the inputs of a component."""
        return self._given.get(name)

    def put(self, treats: Mapping[str, InputTransform | None]) -> None:
        """Have these components treat their inputs so from now on; where weights share memory the last one counts."""
        others = {name: input_transform for name, input_transform in self._given.items() if name not in treats}
        self._set(others | dict(treats))

    @contextmanager
    def swapped(self, treats: Mapping[str, InputTransform | None]) -> Iterator[None]:
        """Inside as by `put`, afterwards as before."""
        before = self._given
        try:
            self.put(treats)
            yield
        finally:
            self._set(before)

    def only(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Inside, of those that treat their inputs now only these do."""
        return self.swapped({name: None for name in self.names if name not in names})

    def _set(self, treats: dict[str, InputTransform | None]) -> None:
        treats = treats if any(input_transform is not None for input_transform in treats.values()) else {}
        if not treats and not self._given:
            return
        self._installed.close()
        self._given = treats
        self._installed.enter_context(_computing(self._network, self._slots, treats))


@contextmanager
def _computing(
    network: nn.Module, weight_views: Mapping[str, WeightView], treats: Mapping[str, InputTransform | None]
) -> Iterator[None]:
    """Inside, modules that hold the parameters of components that treat their inputs multiply treated inputs."""
    by_parameter: dict[int, list[Treated]] = {}
    for name, input_transform in treats.items():
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
    """The components whose inputs no treat would reach, or not all of them, in a forward pass by `run`."""
    places = {
        name: (id(weight_view.parameter), int(weight_view.view().storage_offset()))
        for name, weight_view in weight_views.items()
    }
    reached, multiplied = Counter[tuple[int, int]](), Counter[str]()

    def note(name: str, inputs: Tensor) -> Tensor:
        reached[places[name]] += 1
        return inputs

    def hear(names: Collection[str], inputs: Tensor) -> None:
        multiplied.update(names)

    products = MatmulInputs(weight_views, hear)
    with _computing(network, weight_views, {name: partial(note, name) for name in weight_views}), products:
        run()
    seen = {parameter for parameter, _ in reached}
    return {name for name in products.used if places[name][0] not in seen or reached[places[name]] < multiplied[name]}
