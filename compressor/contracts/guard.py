"""Turns whatever a plugin raises into one PluginError, which names the plugin, its method and the line of its code.

A CompressorError with a text is for the user: it keeps its kind and its text, and the plugin is named before that.
The contract classes derive from `Guarded`, which wraps the methods of their subclasses, so that no call can forget it.
"""

from __future__ import annotations

import functools
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, TracebackType
from typing import Any, ClassVar

from compressor.contracts.torch_state import TorchState, read_torch, restore_torch
from compressor.contracts.types import Component
from compressor.errors import CompressorError, Interrupted, PluginError

CONSTRUCTORS = ("__init__", "__post_init__")
"""The special methods that are guarded."""
OWN_PACKAGES = {__name__.partition(".")[0]}
"""Packages of ours; `compressor.plugins` adds that of the built-in plugins when it loads them. What one of them raises
by mistake is a bug of ours, and stays as it is."""
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
"""Errors that are nobody's bug; torch's has no other name without torch."""
ORIGIN = "_origin"
"""The class attribute with the distribution and the version of a registered plugin."""


LONGEST = 120
"""Characters of a value in an error."""

log = logging.getLogger(__name__)


class _Calls(threading.local):
    """Whether a plugin is running in this thread."""

    active = False


_calls = _Calls()


class Guard:
    """Inside, `plugin` is to blame for what is raised, and must leave torch's global state as it is.

    `method` is the one that was called, with these `arguments`. `subject` is what it worked on; without one, a
    component among the arguments. An inner guard does nothing, because a plugin may handle the errors of its own
    methods.
    """

    def __init__(self, plugin: object, method: str, subject: str = "", arguments: tuple[object, ...] = ()) -> None:
        self.plugin, self.method, self.subject, self.arguments = plugin, method, subject, arguments
        self.is_inner = False
        self.torch_before: TorchState | None = None

    def __enter__(self) -> None:
        self.is_inner, _calls.active = _calls.active, True
        if not self.is_inner:
            self.torch_before = read_torch()

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        _calls.active = self.is_inner
        if self.is_inner:
            return
        changes = restore_torch(self.torch_before)
        if error is None and changes:
            raise PluginError(
                f"{name_plugin(self.plugin)} changed torch's {changes} in `{self.method}`, on which later results "
                "depend; change it back in the same call, or do without it"
            )
        if error is None or is_interrupt(error):
            return
        package = str(find_code(self.plugin).__module__).partition(".")[0]
        if package in OWN_PACKAGES and isinstance(error, Exception) and type(error).__name__ not in OUT_OF_MEMORY:
            return  # the plugin comes with compressor: a text for the user names its options, anything else is a bug
        if not isinstance(error, CompressorError) or not (text := say(error)):
            raise self.describe(error) from error
        if not is_raised_by_run(error) and not self.is_named_in(text):
            kind = next(base for base in type(error).__mro__ if base.__module__ == CompressorError.__module__)
            raise kind(f"{name_plugin(self.plugin)}: {text}") from error

    def is_named_in(self, text: str) -> bool:
        """Whether a text for the user names the plugin, by its name or by a key of its options."""
        code = find_code(self.plugin)
        kind, name = getattr(code, "_kind", None), getattr(code, "name", None)
        keys = (f"`{kind}.", f"`{kind}.{name}.")[kind in ("metric", "compressor")]  # of these, a run has several
        return name_plugin(self.plugin) in text or (isinstance(name, str) and (f"`{name}`" in text or keys in text))

    def describe(self, error: BaseException) -> PluginError:
        """One line on what failed, on what, why and where."""
        subject = self.subject or next(filter(None, map(find_component, self.arguments)), "")
        reason, line = say(error), find_line(self.plugin, error)
        return PluginError(
            f"{name_plugin(self.plugin)} failed in `{self.method}`{subject and f' on {subject}'}: "
            f"{type(error).__name__}{reason and f': {reason}'}{line and f' ({line})'}"
        )


class Guarded:
    """Base class of the contracts. The methods of the classes that derive from a contract are guarded.

    `guarded=False` is for classes of our own, whose errors are not those of a plugin.
    """

    _kind: ClassVar[str]
    """What an error calls such an object."""

    def __init_subclass__(cls, guarded: bool = True, **options: Any) -> None:  # noqa: ANN401 - of other base classes
        super().__init_subclass__(**options)
        if guarded and Guarded not in cls.__bases__:
            for name, value in list_members(cls):
                setattr(cls, name, value)
                if isinstance(value, functools.cached_property):
                    value.__set_name__(cls, name)


def list_members(cls: type[Guarded]) -> Iterator[tuple[str, object]]:
    """The guarded members of a class: its own, and those of mixins that are not `Guarded`."""
    seen: set[str] = set()
    for base in cls.__mro__:
        for name, value in list(vars(base).items()):
            if name in seen or (name.startswith("__") and name not in CONSTRUCTORS):
                continue
            seen.add(name)
            is_plugin = base is cls or not issubclass(base, Guarded)
            if is_plugin and (guarded := guard_member(name, value)) is not None:
                yield name, guarded


def guard_member(name: str, value: object) -> object | None:
    """A method, class method or property with a guard; None for anything else, and for what is abstract."""
    if getattr(value, "__isabstractmethod__", False):
        return None
    match value:
        case FunctionType():
            return guard_method(name, value)
        case classmethod():
            return classmethod(guard_method(name, value.__func__))
        case property():
            read, write, delete = (each and guard_method(name, each) for each in (value.fget, value.fset, value.fdel))
            return property(read, write, delete, value.__doc__)
        case functools.cached_property():
            return functools.cached_property(guard_method(name, value.func))
    return None


def guard_method(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with a guard. If it returns a generator or another iterator, each step of that is guarded too."""
    if hasattr(method, "__guarded__"):  # a class with slots is made a second time, from members that are guarded
        return method

    @functools.wraps(method)
    def guarded(self: object, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
        if _calls.active:
            return method(self, *args, **named)
        guard = Guard(self, name, arguments=(*args, *named.values()))
        with guard:
            found = method(self, *args, **named)
        if isinstance(found, Generator):
            return guard_generator(found, guard)
        return guard_iterator(found, guard) if isinstance(found, Iterator) else found

    guarded.__guarded__ = True  # type: ignore[attr-defined]
    return guarded


def guard_generator(steps: Generator[Any, Any, Any], guard: Guard) -> Generator[Any, Any, Any]:
    """The same generator, guarded while it runs."""
    answer = None
    try:
        while True:
            with guard:
                try:
                    found, answer = steps.send(answer), None  # which may be large, and is the generator's now
                except StopIteration as end:
                    return end.value
            answer = yield found
    finally:
        close_generator(steps, guard)
        with ignored_finalizers():
            del steps  # a generator that did not end is closed by Python once more


def close_generator(steps: Generator[Any, Any, Any], guard: Guard) -> None:
    """Close a generator that nobody asks any more. If that fails, a warning names the plugin and the rule."""
    try:
        with guard:
            steps.close()
    except BaseException as error:
        if is_interrupt(error):
            raise
        # Neither a variable nor a record of the log may keep the generator alive.
        said = str(error if isinstance(error, PluginError) else guard.describe(error))
        log.warning("%s; a generator must end without an error when it is closed: let GeneratorExit pass", said)


@contextmanager
def ignored_finalizers() -> Iterator[None]:
    """Inside, errors of finalizers of a plugin are not printed with a traceback, and not guarded."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda found: before(found) if isinstance(found.exc_value, Interrupted) else None
    is_inner, _calls.active = _calls.active, True
    try:
        yield
    finally:
        sys.unraisablehook, _calls.active = before, is_inner


def is_interrupt(error: BaseException) -> bool:
    """Whether a signal raised it, and not the plugin.

    Where Python's own handler of SIGINT is installed, a KeyboardInterrupt of a plugin looks the same, and counts too.
    """
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return True
    return isinstance(error, Interrupted)


def guard_iterator(items: Iterator[Any], guard: Guard) -> Iterator[Any]:
    """The same iterator, guarded while it runs."""
    end = object()
    while True:
        with guard:
            item = next(items, end)
        if item is end:
            return
        yield item


def name_plugin(plugin: object) -> str:
    """What a plugin is, its name, and where it comes from: a distribution, or else its class."""
    code = find_code(plugin)
    path = f"{code.__module__}.{code.__qualname__}"
    if not isinstance(code, type):
        return f"function `{path}`"
    kind, name = getattr(code, "_kind", "object"), getattr(code, "name", None)
    return f"{kind} `{name}` of {vars(code).get(ORIGIN, path)}" if isinstance(name, str) else f"{kind} `{path}`"


def find_code(plugin: object) -> Any:  # noqa: ANN401 - a class or a function
    """The function that a plugin is, or else its class."""
    if isinstance(plugin, functools.partial):
        return find_code(plugin.func)
    return plugin if isinstance(plugin, type | FunctionType | MethodType | BuiltinFunctionType) else type(plugin)


def show(value: object) -> str:
    """A value of a plugin for one line: short, whatever its `__repr__` does."""
    try:
        text = " ".join(repr(value).split())
    except BaseException as error:  # code of the plugin
        if is_interrupt(error):
            raise
        text = f"of type {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def say(error: BaseException) -> str:
    """The message of an error as one line, empty if it has none, whatever its `__str__` does."""
    try:
        text = " ".join(str(error).split())
    except BaseException as failure:  # code of the plugin
        if is_interrupt(failure):
            raise
        return ""
    return text if len(text) <= 10 * LONGEST else f"{text[: 10 * LONGEST]}…"


def find_component(argument: object) -> str:
    """The name of the component that an argument is or has; empty if there is none."""
    component = getattr(argument, "component", argument)
    return component.name if isinstance(component, Component) else ""


def is_raised_by_run(error: BaseException) -> bool:
    """Whether it comes from a part of the run that the plugin called, such as the trainer, and not from the contracts.

    The errors of the contracts are about what the plugin gave them.
    """
    module = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
    contracts = __name__.rpartition(".")[0]
    return module.partition(".")[0] == __name__.partition(".")[0] and not module.startswith(f"{contracts}.")


def find_line(plugin: object, error: BaseException) -> str:
    """File and line of the innermost call in code of the plugin's own packages; empty if there is none."""
    code = find_code(plugin)
    modules = {str(base.__module__) for base in getattr(code, "__mro__", (code,))}
    packages = {module.partition(".")[0] for module in modules} - {"compressor", "abc", "builtins"}
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages:
            found = f"{frame.f_code.co_filename}:{line}"
    return found
