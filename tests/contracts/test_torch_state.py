"""A plugin that changes the global state of torch is named, and the state is what it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer
from compressor.contracts.torch_state import read_torch, restore_torch
from compressor.errors import PluginError

COMPONENT = Component("model.layers.0.mlp.up_proj", "up", 0, (4, 8), 16)
CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "dtype": (lambda: torch.set_default_dtype(torch.float64), "default dtype from torch.float32 to torch.float64"),
    "gradients": (lambda: torch.set_grad_enabled(False), "computes gradients from True to False"),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), r"threads from \d+ to \d+"),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), "is deterministic from False to True"),
    "warns": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        "is deterministic from False to True, only warns from False to True",
    ),
    "precision": (lambda: torch.set_float32_matmul_precision("medium"), "matmul precision from highest to medium"),
    "device": (lambda: torch.set_default_device("meta"), "default device from None to meta"),
}


@dataclass
class Changing(Compressor):
    """Does `change` before it gives what it should, then `undo`."""

    change: Any = None
    undo: Any = None
    name: ClassVar[str] = "changing"

    def offer(self, component: Component) -> Offer:
        self.change()
        if self.undo is not None:
            self.undo()
        return Offer()

    def compress(self, weight: Any, amount: float, context: Context) -> Any:  # noqa: ANN401
        return weight

    def compress_each(self, weight: Any, amounts: Any, context: Context) -> Iterator[CompressedWeight]:  # noqa: ANN401
        for amount in amounts:
            self.change()
            yield self.compress(weight, amount, context)


@pytest.fixture(autouse=True)
def state_as_before() -> Iterator[None]:
    before = read_torch()
    yield
    assert not restore_torch(before)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_one_line_and_is_undone(change: str) -> None:
    act, said = CHANGES[change]
    before, plugin = read_torch(), Changing(act)
    rule = "on which later results depend; change it back in the same call, or do without it"
    with pytest.raises(PluginError, match=rf"^compressor `changing` of .* changed torch's {said} in `offer`, {rule}$"):
        plugin.offer(COMPONENT)
    assert read_torch() == before
    with pytest.raises(PluginError, match=rf"changed torch's {said} in `compress_each`"):
        next(plugin.compress_each(None, [0.5], Context(COMPONENT)))
    assert read_torch() == before


def test_a_change_that_is_undone_in_the_call_is_none() -> None:
    plugin = Changing(CHANGES["dtype"][0], lambda: torch.set_default_dtype(torch.float32))
    assert plugin.offer(COMPONENT) == Offer()


def test_a_generator_must_not_turn_off_gradients_of_others() -> None:
    @dataclass
    class Holding(Changing):
        def compress_each(self, weight: Any, amounts: Any, context: Context) -> Any:  # noqa: ANN401
            with torch.no_grad():
                yield from amounts

    with pytest.raises(PluginError, match="computes gradients from True to False in `compress_each`"):
        next(Holding().compress_each(None, [0.5], Context(COMPONENT)))
    with torch.no_grad():
        assert next(Holding().compress_each(None, [0.5], Context(COMPONENT))) == 0.5


def test_a_plugin_that_fails_leaves_the_state_too() -> None:
    def fail() -> None:
        torch.set_default_dtype(torch.float64)
        raise KeyError("lost")

    with pytest.raises(PluginError, match=r"failed in `offer` on .*: KeyError: 'lost'"):
        Changing(fail).offer(COMPONENT)


def test_torch_that_was_imported_since_is_as_it_starts() -> None:
    torch.set_default_dtype(torch.float64)
    assert restore_torch(None) == "default dtype from torch.float32 to torch.float64"
