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

from compressor.contracts import Treat
from compressor.models.matmul_inputs import Products, expert_by_expert
from compressor.models.matmul_transform import Treated, TreatedProducts
from compressor.models.patching import detoured
from compressor.models.weight_views import Slot


@dataclass(frozen=True)
class Product:
    """A weight `[out, in]`, and what becomes of the inputs `[..., in]` that it is multiplied with: None leaves them."""

    weight: Tensor
    treat: Treat | None = None

    @classmethod
    def of(cls, weight: Tensor | Product) -> Product:
        """A mere weight leaves its inputs as they are."""
        return weight if isinstance(weight, Product) else cls(weight)

    @property
    def nbytes(self) -> int:
        """Of the weight."""
        return self.weight.nbytes


class Treats:
    """Which components of a network treat their inputs, and the forward passes that do it for them.

    A module that holds the parameter of such a component computes by another forward; the others are let be.
    """

    def __init__(self, network: nn.Module, slots: Mapping[str, Slot]) -> None:
        self._network, self._slots = network, slots
        self._given: dict[str, Treat | None] = {}
        self._installed = ExitStack()

    def __bool__(self) -> bool:
        """Does any component treat its inputs?"""
        return bool(self._given)

    @property
    def names(self) -> list[str]:
        """The components that treat their inputs."""
        return [name for name, treat in self._given.items() if treat is not None]

    def find(self, name: str) -> Treat | None:
        """What becomes of the inputs of a component."""
        return self._given.get(name)

    def put(self, treats: Mapping[str, Treat | None]) -> None:
        """Have these components treat their inputs so from now on; where weights share memory the last one counts."""
        others = {name: treat for name, treat in self._given.items() if name not in treats}
        self._set(others | dict(treats))

    @contextmanager
    def swapped(self, treats: Mapping[str, Treat | None]) -> Iterator[None]:
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

    def _set(self, treats: dict[str, Treat | None]) -> None:
        treats = treats if any(treat is not None for treat in treats.values()) else {}
        if not treats and not self._given:
            return
        self._installed.close()
        self._given = treats
        self._installed.enter_context(_computing(self._network, self._slots, treats))


@contextmanager
def _computing(network: nn.Module, slots: Mapping[str, Slot], treats: Mapping[str, Treat | None]) -> Iterator[None]:
    """Inside, modules that hold the parameters of components that treat their inputs multiply treated inputs."""
    by_parameter: dict[int, list[Treated]] = {}
    for name, treat in treats.items():
        by_parameter.setdefault(id(slots[name].parameter), []).append((slots[name], treat))
    wanted = {key: own for key, own in by_parameter.items() if any(treat is not None for _, treat in own)}
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for module in network.modules():
        held = {id(parameter) for parameter in module.parameters(recurse=False)} & wanted.keys()
        if held:
            products = TreatedProducts({key: wanted[key] for key in held})
            forwards[module] = partial(_run_treated, module, module.forward, products)
    with detoured(forwards):
        yield


def _run_treated(
    module: nn.Module,
    own: Callable[..., Any],
    products: TreatedProducts,
    *args: Any,  # noqa: ANN401 - whatever a module takes and gives
    **named: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    with expert_by_expert(module), products:
        return own(*args, **named)


def find_untreatable(network: PreTrainedModel, slots: Mapping[str, Slot], run: Callable[[], object]) -> set[str]:
    """The components whose inputs no treat would reach, or not all of them, in a forward pass by `run`."""
    places = {name: (id(slot.parameter), int(slot.view().storage_offset())) for name, slot in slots.items()}
    reached, multiplied = Counter[tuple[int, int]](), Counter[str]()

    def note(name: str, inputs: Tensor) -> Tensor:
        reached[places[name]] += 1
        return inputs

    def hear(names: Collection[str], inputs: Tensor) -> None:
        multiplied.update(names)

    products = Products(slots, hear)
    with _computing(network, slots, {name: partial(note, name) for name in slots}), products:
        run()
    seen = {parameter for parameter, _ in reached}
    return {name for name in products.used if places[name][0] not in seen or reached[places[name]] < multiplied[name]}
