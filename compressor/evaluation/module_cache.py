"""Reuses the outputs of a layer's modules that a trial does not change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compressor.models.patching import patched


@dataclass
class _Call:
    """One call of a module: its inputs and its output.

    All starts and ends of calls are events and numbered in order; `began` and `ended` are numbers of events. `versions`
    are those of the tensors right after the call; `times` is how often the module was called.
    """

    inputs: list[Any]
    began: int
    ended: int = -1
    output: Any = None
    versions: list[int] = field(default_factory=list)
    times: int = 1


class ModuleCache:
    """Records one run of `layer`, and reuses outputs in other runs with the same input, bit for bit.

    A module's output is reused in two cases: the module ended before the first changed module began, or it gets the
    very same tensors as before and contains no changed module. The output is computed again where a module is called
    twice, or where one of its tensors is written to afterwards.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._modules = [module for module in layer.modules() if module is not layer]
        self._parents = {child: module for module in layer.modules() for child in module.children()}
        self._calls: dict[nn.Module, _Call] = {}
        self._events = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, run the layer once; every call of a module is recorded."""
        self._calls.clear()
        with patched({module: self._record(module, module.forward) for module in self._modules}):
            yield
        for call in self._calls.values():
            if call.times != 1 or call.versions != _read_versions([*call.inputs, call.output]):
                call.ended = -1

    @contextmanager
    def serving(self, changed: Collection[nn.Module]) -> Iterator[None]:
        """Inside, run the layer on the same input, with other weights in the modules `changed`."""
        touched = set[nn.Module]()
        first = self._events + 1
        for module in changed:
            owners = [module]
            while owners[-1] in self._parents:
                owners.append(self._parents[owners[-1]])
            touched.update(owners)
            first = min(first, next((self._calls[owner].began for owner in owners if owner in self._calls), 0))
        known = {module: call for module, call in self._calls.items() if call.ended >= 0 and module not in touched}
        with patched({module: _reuse(call, module.forward, call.ended < first) for module, call in known.items()}):
            yield

    def _record(self, module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        """Computes as `own` does, and records the call."""

        def forward(*args: Any, **named: Any) -> Any:  # noqa: ANN401 - any arguments and output of a module
            if module in self._calls:
                self._calls[module].times += 1
                return own(*args, **named)
            call = self._calls[module] = _Call(_list_inputs(args, named), self._count_event())
            call.output = own(*args, **named)
            call.ended = self._count_event()
            call.versions = _read_versions([*call.inputs, call.output])
            return call.output

        return forward

    def _count_event(self) -> int:
        self._events += 1
        return self._events


def _reuse(call: _Call, own: Callable[..., Any], is_before: bool) -> Callable[..., Any]:
    """Gives the recorded output where the call is before every change or has equal inputs; else computes as `own`."""

    def forward(*args: Any, **named: Any) -> Any:  # noqa: ANN401 - any arguments and output of a module
        if is_before or _is_same(call.inputs, _list_inputs(args, named)):
            return call.output
        return own(*args, **named)

    return forward


def _list_inputs(args: Sequence[Any], named: dict[str, Any]) -> list[Any]:
    """All arguments in a fixed order; the elements of tuples and lists are listed one by one."""
    found: list[Any] = []
    for value in (*args, *(item for name in sorted(named) for item in (name, named[name]))):
        found.extend(value if isinstance(value, tuple | list) else (value,))
    return found


def _is_same(before: list[Any], now: list[Any]) -> bool:
    """Are these the very same tensors, and equal plain values?"""
    return len(before) == len(now) and all(
        a is b or (isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b)
        for a, b in zip(before, now, strict=True)
    )


def _read_versions(values: Sequence[Any]) -> list[int]:
    """How often each tensor was written to; the tensors may be inside tuples and lists."""
    flat = [item for value in values for item in (value if isinstance(value, tuple | list) else (value,))]
    return [item._version for item in flat if isinstance(item, Tensor)]
