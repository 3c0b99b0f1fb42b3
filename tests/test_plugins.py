"""The plugin system with plugins that are really installed: a module and its dist-info in a folder on sys.path."""

import importlib
import inspect
import logging
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from compressor import hookspecs
from compressor.contracts import Compressor, Metric, Recovery, Schedule
from compressor.errors import ConfigError
from compressor.plugins import Plugins, installed, load_plugins

PROJECT = Path(__file__).parents[1]

HEADER = """
from dataclasses import dataclass
from compressor import hookimpl
from compressor.contracts import Better, Compressor, KeepRequest, Metric, Reads, Recovery, Schedule
"""
SCHEDULE = """
@dataclass
class {cls}(Schedule):
    name = "{name}"
    count: int = 1

    def search(self, problem):
        yield KeepRequest({{}})
"""
METRIC = """
@dataclass
class Length(Metric):
    name = "length"
    reads = Reads.PREDICTED
    better = Better.LOWER

    def sequence_values(self, candidate, base):
        return candidate.predicted
"""
COMPRESSOR = """
@dataclass
class Zero(Compressor):
    name = "zero"

    def offer(self, component):
        raise NotImplementedError

    def compress(self, weight, amount, context):
        raise NotImplementedError
"""
RECOVERY = """
@dataclass
class Rest(Recovery):
    name = "rest"

    def recover(self, trainer):
        trainer.solve_least_squares(0.1)
"""
REGISTER = """
@hookimpl
def {hook}(register):
    for cls in ({classes},):
        register(cls)
"""
LAZY = SCHEDULE.format(cls="Lazy", name="lazy")
IDLE = SCHEDULE.format(cls="Idle", name="idle")


def register(hook: str, *classes: str) -> str:
    return REGISTER.format(hook=hook, classes=", ".join(classes))


GOOD = HEADER + LAZY + register("register_schedules", "Lazy")

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(distribution, source, …): what pip would leave behind; gone after the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(
        distribution: str, source: str, version: str = "0.1", metadata: str | None = None, entries: str | None = None
    ) -> None:
        (tmp_path / f"{distribution}.py").write_text(source, encoding="utf-8")
        folder = tmp_path / f"{distribution}-{version}.dist-info"
        folder.mkdir()
        standard = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (folder / "METADATA").write_text(standard if metadata is None else metadata, encoding="utf-8")
        entries = entries or f"[compressor]\nthing = {distribution}\n"
        (folder / "entry_points.txt").write_text(entries, encoding="utf-8")
        importlib.invalidate_caches()

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    monkeypatch.undo()
    importlib.invalidate_caches()


def test_a_plugin_is_found_with_its_distribution(install: Install) -> None:
    install("good", GOOD, version="1.2.3")
    plugins = load_plugins()
    entry = plugins.schedules.entries["lazy"]
    assert (entry.cls.__name__, entry.distribution, entry.version) == ("Lazy", "good", "1.2.3")
    assert plugins.schedules["lazy"] is entry.cls
    assert "plugin `thing` of good 1.2.3" in map(str, plugins.loaded)
    assert not plugins.failures


@pytest.mark.parametrize("value", ["good:a:b", "good:", ":a", "a b"])
def test_an_entry_point_that_is_written_wrongly_is_one_line(value: str, install: Install) -> None:
    install("good", GOOD, entries=f"[compressor]\nthing = {value}\n")
    plugins = load_plugins()
    rule = f"`{value}` is not `package.module` or `package.module:object`; correct it"
    assert [failure.cause for failure in plugins.failures] == [f"PluginError: {rule}"]


def test_nothing_of_a_test_stays() -> None:
    assert not load_plugins().failures and "lazy" not in load_plugins().schedules


BAD = {
    "import_error": ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
    "syntax": ("def (", "SyntaxError: "),
    "exits": ("raise SystemExit('I quit')", "SystemExit: I quit"),
    "exits_silently": ("import sys; sys.exit()", "SystemExit: no message"),
    "two_lines": ("raise ValueError('one\\n  two')", "ValueError: one two"),
    "misspelled": (HEADER + LAZY + register("register_schedule", "Lazy"), "unknown hook 'register_schedule'"),
    "misses_argument": (HEADER + "@hookimpl\ndef register_metrics(wrong): ...", "Argument(s) {'wrong'} are declared"),
    "undecorated": (
        GOOD.replace("@hookimpl", ""),
        "PluginError: undecorated implements no hook; put @compressor.hookimpl on its functions",
    ),
    "raises": (HEADER + "@hookimpl\ndef register_metrics(register):\n    1 / 0", "ZeroDivisionError: division by zero"),
    "no_name": (GOOD.replace('name = "lazy"', ""), "no_name.Lazy lacks the field `name` (str); set it on the class"),
    "plain": (GOOD.replace("@dataclass", ""), "plain.Lazy is not a dataclass; put @dataclass on it"),
    "abstract": (GOOD.replace("def search", "def seek"), "abstract.Lazy lacks search; implement it"),
    "a_thief": (GOOD.replace('"lazy"', '"uniform"'), "schedule `uniform` is already taken by compressor "),
    "twice": (HEADER + LAZY + register("register_schedules", "Lazy", "Lazy"), "already taken by twice 0.1; choose"),
    "changes_torch": (
        "import torch\ntorch.set_default_dtype(torch.float64)\n" + GOOD,
        "its import changed torch's default dtype from torch.float32 to torch.float64, on which all results depend",
    ),
    "moves": (
        "import os\nos.chdir('/')\n" + GOOD,
        "its import changed the working directory, to which all relative paths belong; do without it",
    ),
    "moves_and_fails": ("import os\nos.chdir('/')\nraise ValueError('lost')", "ValueError: lost"),
    "endless": (
        GOOD.replace(
            'name = "lazy"',
            'k: int = __import__("dataclasses").field(default_factory=lambda: 10**5000)\n    name = "lazy"',
        ),
        "the default of `k` of schedule `lazy` cannot be written into a report (",
    ),
    "bytes": (
        GOOD.replace('name = "lazy"', 'k: bytes = b"x"\n    name = "lazy"'),
        "the default of `k` of schedule `lazy` cannot be written into a report (it is of type bytes)",
    ),
    "half": (
        HEADER + METRIC + LAZY + register("register_metrics", "Length") + register("register_schedules", "Lazy", "int"),
        "<class 'int'> is not a subclass of Schedule; derive it from that",
    ),
}


def names(plugins: Plugins) -> list[set[str]]:
    return [set(registry) for registry in plugins.registries()]


@pytest.mark.parametrize("distribution", BAD)
def test_a_bad_plugin_is_named_and_harms_nobody(
    distribution: str, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    """Others load, those after it in the order too; nothing of it is registered; the cause is one line, said twice."""
    builtin, place = names(load_plugins()), Path.cwd()
    source, cause = BAD[distribution]
    install(distribution, source)
    install("zz_after", HEADER + IDLE + register("register_schedules", "Idle"))
    with caplog.at_level(logging.WARNING):
        plugins = load_plugins()
    assert names(plugins) == [builtin[0], builtin[1], builtin[2] | {"idle"}, builtin[3]]
    assert Path.cwd() == place
    (failure,) = plugins.failures
    line = str(failure)
    assert line.startswith(f"plugin `thing` of {distribution} 0.1 failed to load: ") and line.isprintable()
    assert cause in failure.cause
    assert line in caplog.text
    for registry in plugins.registries():
        with pytest.raises(ConfigError, match=r"^unknown ") as caught:
            registry["missing"]
        assert str(caught.value).endswith(line) and str(caught.value).isprintable()


def test_the_first_of_two_owners_is_named(install: Install) -> None:
    for distribution in ("bbb", "aaa"):
        install(distribution, GOOD)
    plugins = load_plugins()
    assert plugins.schedules.entries["lazy"].distribution == "aaa"
    assert [str(f) for f in plugins.failures] == [
        "plugin `thing` of bbb 0.1 failed to load: PluginError: schedule `lazy` is already taken by aaa 0.1; "
        "choose another name"
    ]


def test_one_distribution_may_bring_several_plugins(install: Install) -> None:
    entries = "[compressor]\nbad = no_such_module_here\ngood = several\n"
    install("several", GOOD, entries=entries)
    plugins = load_plugins()
    assert "lazy" in plugins.schedules and len(plugins.failures) == 1


def test_metadata_that_cannot_be_read_is_a_failure(install: Install) -> None:
    install("garbled", "", entries="[compressor]\nthis is no entry point\n")
    install("nameless", GOOD, metadata="")
    plugins = load_plugins()
    assert plugins.schedules.entries["lazy"].distribution == "an unnamed distribution"
    (failure,) = plugins.failures
    assert str(failure).startswith("plugin `entry_points.txt` of garbled 0.1 failed to load: ")


def test_other_groups_are_left_alone(install: Install) -> None:
    install("stranger", "raise SystemExit", entries="[console_scripts]\nthing = stranger:main\n")
    assert not load_plugins().failures


HOOKS: dict[str, tuple[type, str, str]] = {
    "register_metrics": (Metric, "length", METRIC + register("register_metrics", "Length")),
    "register_compressors": (Compressor, "zero", COMPRESSOR + register("register_compressors", "Zero")),
    "register_schedules": (Schedule, "lazy", LAZY + register("register_schedules", "Lazy")),
    "register_recoveries": (Recovery, "rest", RECOVERY + register("register_recoveries", "Rest")),
}
"""A use of every hook."""


def find_hooks() -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in vars(hookspecs).items() if hasattr(value, "compressor_spec")}


def test_every_hook_is_documented_and_used() -> None:
    assert set(find_hooks()) == set(HOOKS)
    for name, hook in find_hooks().items():
        documentation = inspect.getdoc(hook) or ""
        assert documentation.endswith("."), name
        hints = get_type_hints(hook)
        assert hints.pop("return") is type(None), name
        assert set(hints) == set(inspect.signature(hook).parameters), f"{name} has an argument without a type"
        assert all(f"`{argument}`" in documentation for argument in hints), f"{name} does not explain an argument"


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_registers(hook: str, install: Install) -> None:
    contract, name, source = HOOKS[hook]
    install("hooked", HEADER + source)
    plugins = load_plugins()
    assert not plugins.failures
    (registry,) = [registry for registry in plugins.registries() if registry.contract is contract]
    assert issubclass(registry[name], contract)
    assert [name in other for other in plugins.registries()].count(True) == 1


def test_built_in_plugins_use_the_same_door() -> None:
    """Every package of plugins/ is an entry point of the project, and brings at least one class by it."""
    packages = {path.name for path in (PROJECT / "plugins").iterdir() if (path / "__init__.py").is_file()}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["compressor"] == {name: f"compressor_plugins.{name}" for name in packages}
    plugins = load_plugins()
    assert packages <= {plugin.entry_point.name for plugin in plugins.loaded if plugin.distribution == "compressor"}
    origins = {
        entry.cls.__module__.split(".")[1] for registry in plugins.registries() for entry in registry.entries.values()
    }
    assert origins == packages


def test_installed_is_loaded_once() -> None:
    assert installed() is installed()


def test_the_output_is_not_that_of_plugins(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("loud", 'print("hello")\n' + GOOD)
    assert "lazy" in load_plugins().schedules
    assert capsys.readouterr() == ("", "hello\n")


def test_metadata_that_is_no_text_is_a_failure(install: Install, tmp_path: Path) -> None:
    install("odd", GOOD)
    next(tmp_path.glob("odd-*/METADATA")).write_bytes(b"Name: \xff\xfe")
    assert ["UnicodeDecodeError" in failure.cause for failure in load_plugins().failures] == [True]
