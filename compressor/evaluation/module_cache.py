"""What the modules of a layer gave, to be given again where a trial leaves them nothing new to compute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compressor.models.patching import patched


@dataclass
class _Call:
    """A module's call: what it was given and gave, and when it began and ended in the order of all events."""

    inputs: list[Any]
    began: int
    ended: int = -1
    output: Any = None
    versions: list[int] = field(default_factory=list)
    times: int = 1


class ModuleCache:
    """Remembers one run of `layer`, and serves modules from it in another run with the same input, bit for bit.

    A module is served where nothing that was computed before it has changed: it ended before the first changed module
    began, or it is given the very tensors that it was given before and holds no changed module. Modules called twice,
    and tensors that are written to afterwards, are computed again.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._modules = [module for module in layer.modules() if module is not layer]
        self._above = {part: module for module in layer.modules() for part in module.children()}
        self._calls: dict[nn.Module, _Call] = {}
        self._events = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, the layer runs once and every module's call is remembered."""
        self._calls.clear()
        with patched({module: self._record(module, module.forward) for module in self._modules}):
            yield
        for call in self._calls.values():
            if call.times != 1 or call.versions != _read_versions([*call.inputs, call.output]):
                call.ended = -1

    @contextmanager
    def serving(self, changed: Collection[nn.Module]) -> Iterator[None]:
        """Inside, the layer runs on the same input with other weights in the `changed` modules."""
        touched = set[nn.Module]()
        first = self._events + 1
        for module in changed:
            owner: nn.Module | None = module
            while owner is not None and owner not in self._calls:
                touched.add(owner)
                owner = self._above.get(owner)
            first = min(first, 0 if owner is None else self._calls[owner].began)
            while owner is not None:
                touched.add(owner)
                owner = self._above.get(owner)
        known = {module: call for module, call in self._calls.items() if call.ended >= 0 and module not in touched}
        with patched({module: _serve(call, module.forward, call.ended < first) for module, call in known.items()}):
            yield

    def _record(self, module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        """Computes as `own` does, and notes it."""

        def forward(*args: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever a module takes and gives
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


def _serve(call: _Call, own: Callable[..., Any], is_before: bool) -> Callable[..., Any]:
    """Gives what the call gave where that comes before any change, or has the same inputs; else computes as `own`."""

    def forward(*args: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever a module takes and gives
        if is_before or _is_same(call.inputs, _list_inputs(args, named)):
            return call.output
        return own(*args, **named)

    return forward


def _list_inputs(args: Sequence[Any], named: dict[str, Any]) -> list[Any]:
    """Arguments in a fixed order, tuples taken apart."""
    found: list[Any] = []
    for value in (*args, *(part for name in sorted(named) for part in (name, named[name]))):
        found.extend(value if isinstance(value, tuple | list) else (value,))
    return found


def _is_same(before: list[Any], now: list[Any]) -> bool:
    """The very same tensors, and equal plain values."""
    return len(before) == len(now) and all(
        a is b or (isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b)
        for a, b in zip(before, now, strict=True)
    )


def _read_versions(values: Sequence[Any]) -> list[int]:
    """How often each tensor among the values, or in a tuple there, was written to."""
    flat = [part for value in values for part in (value if isinstance(value, tuple | list) else (value,))]
    return [part._version for part in flat if isinstance(part, Tensor)]
