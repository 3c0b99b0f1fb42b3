"""Whatever a plugin raises is one line that names it; what is not its failure passes unchanged."""

from __future__ import annotations

import functools
import gc
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compressor.commands.stopping import Stop, Stopped, interruptible
from compressor.contracts import (
    Better,
    Component,
    Compressor,
    Context,
    KeepRequest,
    Offer,
    Problem,
    Schedule,
    Search,
    Treatment,
    guard,
)
from compressor.contracts.guard import name_plugin
from compressor.data.text_files import find_file
from compressor.errors import CompressorError, ConfigError, DataError, Interrupted, PlanError, PluginError
from compressor.registry import Registry
from compressor.testing.problems import make_problem

COMPONENT = Component("model.layers.0.mlp.up_proj", "up", 0, (4, 8), 16)


def fail(error: BaseException) -> Any:  # noqa: ANN401 - it never returns
    raise error


class Mixin:
    """Not of a contract, but its methods become those of a plugin."""

    error: BaseException

    def importance(self, weight: object, context: Context) -> Any:  # noqa: ANN401
        fail(self.error)


@dataclass
class Failing(Mixin, Compressor):
    """Raises `error` wherever it is called."""

    name: ClassVar[str] = "failing"
    error: Any = None

    @classmethod
    def make(cls) -> Any:  # noqa: ANN401
        return fail(ZeroDivisionError("in a class method"))

    @property
    def transforms_inputs(self) -> bool:
        return bool(fail(self.error))

    @functools.cached_property
    def table(self) -> int:
        return int(fail(self.error))

    def offer(self, component: Component) -> Offer:
        return Offer(high=float(fail(self.error)))

    def compress(self, weight: object, amount: float, context: Context) -> Any:  # noqa: ANN401
        return fail(self.error)


CALLS: dict[str, Any] = {
    "offer": lambda plugin: plugin.offer(COMPONENT),
    "compress": lambda plugin: plugin.compress(None, 0.5, Context(COMPONENT)),
    "importance": lambda plugin: plugin.importance(None, context=Context(COMPONENT)),
    "compress_each": lambda plugin: list(plugin.compress_each(None, [0.5], Context(COMPONENT))),
    "transforms_inputs": lambda plugin: plugin.transforms_inputs,
    "table": lambda plugin: plugin.table,
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    "error", [ValueError("so\n  it is"), SystemExit(0), StopIteration(), GeneratorExit(), BaseException("odd")]
)
def test_whatever_is_raised_is_one_line_with_its_cause(method: str, error: BaseException) -> None:
    with pytest.raises(PluginError) as caught:
        CALLS[method](Failing(error))
    raised = "compress" if method == "compress_each" else method  # the default calls that
    said = str(caught.value)
    assert said.startswith(f"compressor `failing` of {__name__}.Failing failed in `{raised}`") and "\n" not in said
    assert (f" on {COMPONENT.name}: " in said) == (method not in ("transforms_inputs", "table"))
    assert type(error).__name__ in said and " ".join(str(error).split()) in said
    assert re.search(rf"\({re.escape(__file__)}:\d+\)$", said)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("error", [ConfigError("`failing` is for the user"), Interrupted(), Stopped(15)])
def test_what_is_no_failure_of_the_plugin_passes(method: str, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        CALLS[method](Failing(error))
    assert caught.value is error


class OwnError(PlanError):
    """An error of a plugin, made from two values."""

    def __init__(self, value: int, rule: str) -> None:
        super().__init__(f"got {value};\n{rule}")


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ConfigError("for the user"), ConfigError, "for the user"),
        (CompressorError("two\nlines"), CompressorError, "two lines"),
        (OwnError(5, "give 6"), PlanError, "got 5; give 6"),
    ],
)
def test_a_text_for_the_user_names_the_plugin(
    method: str, error: CompressorError, kind: type[CompressorError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        CALLS[method](Failing(error))
    assert type(caught.value) is kind and caught.value.__cause__ is error
    assert str(caught.value) == f"compressor `failing` of {__name__}.Failing: {said}"


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("text", ["`failing` is tired", "`compressor.failing.depth` must be 1, got 2; give 1"])
def test_a_text_that_names_the_plugin_stays_as_it_is(method: str, text: str) -> None:
    error = ConfigError(text)
    with pytest.raises(ConfigError) as caught:
        CALLS[method](Failing(error))
    assert caught.value is error


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("error", [CompressorError(), ConfigError(""), PluginError(" \n ")])
def test_an_error_without_a_text_is_described(method: str, error: CompressorError) -> None:
    with pytest.raises(PluginError, match=rf"failed in `\w+`.*: {type(error).__name__} \(.*test_guard\.py:\d+\)$"):
        CALLS[method](Failing(error))


def test_an_error_of_the_contracts_names_the_plugin() -> None:
    @dataclass
    class Careless(Failing):
        def offer(self, component: Component) -> Offer:
            raise AssertionError(Treatment("another", 2.0))

    with pytest.raises(PlanError, match=r"^compressor `failing` of .*: `amount` of another must be in \[0, 1\], got"):
        Careless().offer(COMPONENT)


def test_an_error_of_the_run_passes(tmp_path: Path) -> None:
    """The trainer, say, that a recovery uses."""

    @dataclass
    class Calling(Failing):
        def offer(self, component: Component) -> Offer:
            raise AssertionError(find_file(str(tmp_path / "missing.txt")))

    with pytest.raises(DataError, match=r"^.*missing\.txt") as caught:
        Calling().offer(COMPONENT)
    assert "failing" not in str(caught.value)


@pytest.mark.parametrize("error", [ConfigError("for the user"), ConfigError()])
def test_an_error_for_the_user_of_a_plugin_of_ours_stays(error: ConfigError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "__module__", "compressor_plugins.failing")
    monkeypatch.setattr(guard, "OWN_PACKAGES", {"compressor", "compressor_plugins"})
    with pytest.raises(ConfigError) as caught:
        Failing(error).offer(COMPONENT)
    assert caught.value is error


@pytest.mark.parametrize("method", CALLS)
def test_an_interrupt_without_a_signal_is_a_failure_of_the_plugin(method: str) -> None:
    with interruptible(), pytest.raises(PluginError, match=r"compressor `failing` of .*: KeyboardInterrupt"):
        CALLS[method](Failing(KeyboardInterrupt()))


@pytest.mark.parametrize("listening", [interruptible, Stop().listening, nullcontext])
def test_a_signal_while_a_plugin_runs_is_no_failure_of_it(listening: Callable[[], Any]) -> None:
    @dataclass
    class Killed(Failing):
        def offer(self, component: Component) -> Offer:
            signal.raise_signal(signal.SIGINT)
            return Offer()

    before = signal.getsignal(signal.SIGINT)
    with listening(), pytest.raises(KeyboardInterrupt):
        Killed().offer(COMPONENT)
    assert signal.getsignal(signal.SIGINT) is before


def test_class_methods_and_constructors_are_guarded_too() -> None:
    @dataclass
    class Unfinished(Failing):
        def __post_init__(self) -> None:
            raise KeyError("lost")

    with pytest.raises(PluginError, match="failed in `make`: ZeroDivisionError: in a class method"):
        Failing.make()
    with pytest.raises(PluginError, match="failed in `__post_init__`: KeyError: 'lost'"):
        Unfinished()


def test_a_class_with_slots_is_guarded_once() -> None:
    with pytest.raises(PluginError, match=r"failed in `offer` .*: KeyError: 'lost'"):
        dataclass(slots=True)(type("Slotted", (Failing,), {}))(KeyError("lost")).offer(COMPONENT)


def test_a_plugin_may_handle_errors_of_its_own_methods() -> None:
    @dataclass
    class Careful(Failing):
        def offer(self, component: Component) -> Offer:
            try:
                self.compress(None, 0.5, Context(component))
            except KeyError:
                return Offer(high=0.5)
            raise AssertionError

    assert Careful(KeyError("lost")).offer(COMPONENT) == Offer(high=0.5)
    with pytest.raises(PluginError):  # the guard of the outermost call is there again
        Careful(KeyError("lost")).compress(None, 0.5, Context(COMPONENT))


def test_a_registered_plugin_is_named_with_its_distribution() -> None:
    @dataclass
    class Registered(Failing):
        name: ClassVar[str] = "registered"

    Registry(Compressor).add(Registered, "acme", "1.2")  # type: ignore[type-abstract]
    with pytest.raises(PluginError, match=r"^compressor `registered` of acme 1\.2 failed in `offer`"):
        Registered(KeyError()).offer(COMPONENT)

    class Child(Registered):
        """Of another distribution, so far unknown."""

    with pytest.raises(PluginError, match=r"^compressor `registered` of .*Child failed in `offer`"):
        Child(KeyError()).offer(COMPONENT)


@dataclass
class Steps(Schedule):
    """Fails at the step `at`, and closes what it opened."""

    name: ClassVar[str] = "steps"
    at: int = 0

    def search(self, problem: Problem) -> Search:
        self.closed = False
        try:
            for step in self.count():
                answer = yield KeepRequest({}, notes=[str(step)])
                assert answer == {"step": float(step)}
        finally:
            self.closed = True

    def count(self) -> Iterator[int]:
        yield from range(self.at)
        sys.exit(0)


def test_every_step_of_a_search_is_guarded() -> None:
    plugin = Steps(at=2)
    search = plugin.search(make_problem(["prune"], {"kl": Better.LOWER}))
    assert next(search).notes == ["0"]
    assert search.send({"step": 0.0}).notes == ["1"]
    with pytest.raises(PluginError, match=r"^schedule `steps` of .* failed in `search`: SystemExit: 0 \("):
        search.send({"step": 1.0})
    assert plugin.closed


def test_a_search_that_is_left_is_closed() -> None:
    plugin = Steps(at=2)
    search = plugin.search(make_problem(["prune"], {"kl": Better.LOWER}))
    next(search)
    search.close()
    assert plugin.closed


@dataclass
class Endless(Schedule):
    """Yields once more whatever happens."""

    name: ClassVar[str] = "endless"

    def search(self, problem: Problem) -> Search:
        while True:
            try:
                yield from self.ask()
            except BaseException:
                pass

    def ask(self) -> Search:
        try:
            yield KeepRequest({})
        except GeneratorExit:
            yield KeepRequest({})


def test_a_search_that_cannot_be_closed_is_one_warning(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warnings are errors, also those of finalizers."""
    search = Endless().search(make_problem(["prune"], {"kl": Better.LOWER}))
    next(search)
    del search
    gc.collect()
    (said,) = caplog.messages
    assert re.fullmatch(
        r"schedule `endless` of .*\.Endless failed in `search`: RuntimeError: generator ignored GeneratorExit.*; a "
        r"generator must end without an error when it is closed: let GeneratorExit pass",
        said,
    )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [ValueError("lost"), KeyError()])
def test_a_bug_of_a_plugin_of_ours_stays_a_bug(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "__module__", "compressor.failing")
    with pytest.raises(type(error)) as caught:
        Failing(error).offer(COMPONENT)
    assert caught.value is error


@pytest.mark.parametrize("error", [SystemExit(0), MemoryError()])
def test_what_is_no_bug_of_a_plugin_of_ours_is_one_line(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "__module__", "compressor.failing")
    with pytest.raises(PluginError, match="failed in `offer`"):
        Failing(error).offer(COMPONENT)


def test_an_error_that_cannot_be_shown_is_one_line() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    with pytest.raises(PluginError, match=r"failed in `offer` on .*: Mute \("):
        Failing(Mute()).offer(COMPONENT)
    with pytest.raises(PluginError) as caught:
        Failing(ValueError("x" * 10**6)).offer(COMPONENT)
    assert len(str(caught.value)) < 2000


def add(number: int, other: int) -> int:
    return number + other


@pytest.mark.parametrize("plugin", [add, functools.partial(add, 1), functools.partial(functools.partial(add), 1)])
def test_functions_are_named(plugin: object) -> None:
    assert name_plugin(plugin) == f"function `{__name__}.add`"
