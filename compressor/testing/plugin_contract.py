"""Contract tests and helpers that are shared by plugins of every kind."""

import importlib.abc
import pickle
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from compressor.registry import Registry


class PluginContract:
    """The promises of every plugin. A suite sets `contract`, a plugin author sets `instance`."""

    contract: ClassVar[Any]
    instance: Any

    @pytest.fixture
    def plugin(self) -> Any:  # noqa: ANN401 - each suite says which kind
        return self.instance

    def test_can_be_registered_and_configured(self, plugin: Any) -> None:  # noqa: ANN401
        """The class fits its contract, and Hydra supports every field: instance -> config -> an equal instance."""
        Registry(self.contract).check(type(plugin))
        rebuilt = OmegaConf.to_object(OmegaConf.structured(plugin))
        assert rebuilt == plugin, f"{plugin} came back from its config as {rebuilt}"


@contextmanager
def randomness_untouched() -> Iterator[None]:
    """Fails if the code inside uses or seeds a global random generator; randomness must come from an explicit seed."""
    before = read_generators()
    yield
    assert read_generators() == before, "a global generator was used; draw from one that is made from the given seed"
    # Change the global state, so that code which only reads it gives another result next time.
    random.random()
    np.random.random()
    torch.rand(())


def read_generators() -> tuple[object, ...]:
    """The states of the global generators of random, numpy and torch, comparable."""
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit: 0 and −0 differ, NaN equals itself."""
    first, second = a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    return a.dtype == b.dtype and torch.equal(first, second)


class TorchRefused(importlib.abc.MetaPathFinder):
    """Makes `import torch` fail."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "torch":
            raise ImportError("this plugin must not need torch")
        return None


def refuse_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, torch cannot be imported."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [TorchRefused(), *sys.meta_path])
