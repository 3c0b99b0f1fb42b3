"""Imports keep their direction: who may need whom, and what is too heavy to be needed by everybody."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compressor

CORE = Path(compressor.__file__).parent
PLUGINS = CORE.parent / "plugins"

CONTRACTS = {"errors", "values", "grids", "requests", "contracts"}
MODEL = CONTRACTS | {"models", "data"}
ANSWERS = MODEL | {"reference", "walk"}
ENGINE = ANSWERS | {"calibrate", "sensitivity", "batches", "engine", "sweep"}
OUTPUT = {"tracking", "report", "checkpoint", "export"}
REGISTRIES = CONTRACTS | {"hookspecs", "registry"}
CHOICE = {"kriging", "screening", "best"}
COST = {"machine", "rehearsal", "tally", "expense"}
REACHES: dict[str, set[str]] = {
    "errors": set(),
    "values": {"errors"},
    "grids": set(),
    "requests": {"errors", "values"},
    "contracts": {"errors", "values", "grids", "requests"},
    **dict.fromkeys(["hookspecs", "registry"], CONTRACTS),
    "plugins": REGISTRIES,
    **dict.fromkeys(["models", "data"], MODEL),
    **dict.fromkeys(["reference", "walk"], ANSWERS),
    **dict.fromkeys(["calibrate", "batches", "engine", "sweep"], ENGINE),
    "sensitivity": ENGINE | {"hookspecs", "registry"},
    **dict.fromkeys(["tracking", "report", "checkpoint"], MODEL | OUTPUT),
    "export": MODEL | OUTPUT | {"machine"},
    "inference": MODEL | OUTPUT | {"machine"},
    **dict.fromkeys(["kriging", "screening", "best"], CONTRACTS | CHOICE),
    "workbench": ENGINE | REGISTRIES | CHOICE | {"plugins", "export", "machine"},
    "machine": set(),
    "rehearsal": CONTRACTS | CHOICE,
    "tally": ENGINE | REGISTRIES | CHOICE | {"rehearsal"},
    "expense": ENGINE | OUTPUT | REGISTRIES | CHOICE | COST,
    "forecast": ENGINE | OUTPUT | REGISTRIES | CHOICE | {"plugins", "workbench", "machine"},
    "run": ENGINE | OUTPUT | REGISTRIES | CHOICE | COST | {"plugins", "workbench"},
}
"""Module -> what it may need of the modules in this table, by itself or by way of any other module."""

PUBLIC = {
    "compressor",
    *(f"compressor.{name}" for name in ("contracts", "errors", "values", "readout", "plans", "plugins")),
    *(f"compressor.{name}" for name in ("margin_law", "estimates")),
}
"""What a plugin may build on."""

OWNERS = {"hydra": {"cli", "compose"}, "wandb": {"tracking"}, "compressed_tensors": {"compressed_tensors"}}
"""Package -> the only modules that import it; `compose` is the part of the command line that speaks to Hydra."""


def read_imports(source: str, package: str, typing_too: bool = False) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a module of `package`, also inside functions; name is "" for a whole module."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if is_typing and not typing_too:
            skipped.update(child for statement in node.body for child in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from ((module, alias.name) for alias in node.names)


def find_sources(folder: Path, package: str) -> Iterator[tuple[str, str, str]]:
    """Dotted name, package and source of every module in a folder."""
    for path in sorted(folder.rglob("*.py")):
        parts = [package, *path.relative_to(folder).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        yield name, name if is_package else name.rpartition(".")[0], path.read_text(encoding="utf-8")


SOURCES = {name: (package, source) for name, package, source in find_sources(CORE, "compressor")}
PLUGIN_SOURCES = {name: (package, source) for name, package, source in find_sources(PLUGINS, "compressor_plugins")}


def find_needs(name: str) -> set[str]:
    """Modules of the core that a module of the core imports at run time."""
    package, source = SOURCES[name]
    imports = read_imports(source, package)
    modules = {inner if (inner := f"{module}.{part}") in SOURCES else module for module, part in imports}
    return {module for module in modules if module in SOURCES} - {name, "compressor"}


def reach(name: str) -> set[str]:
    """Everything that comes with a module of the core."""
    found, waiting = set[str](), [name]
    while waiting:
        new = find_needs(waiting.pop()) - found
        found |= new
        waiting.extend(new)
    return found


@pytest.mark.parametrize("name", [name for name in REACHES if f"compressor.{name}" in SOURCES])
def test_modules_need_only_what_comes_before_them(name: str) -> None:
    listed = {module.removeprefix("compressor.") for module in reach(f"compressor.{name}")} & {*REACHES, "cli"}
    assert listed - {name} <= REACHES[name]


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_needs_itself(name: str) -> None:
    assert name not in reach(name)


def test_nothing_needs_the_command_line() -> None:
    for name in SOURCES:
        assert "compressor.cli" not in find_needs(name), name


@pytest.mark.parametrize("package", OWNERS)
def test_heavy_packages_have_one_owner(package: str) -> None:
    users = {
        name.rpartition(".")[2]
        for name, (parent, source) in {**SOURCES, **PLUGIN_SOURCES}.items()
        if any(module.partition(".")[0] == package for module, _ in read_imports(source, parent, typing_too=True))
    }
    assert users <= OWNERS[package]


def test_the_core_does_not_know_its_plugins() -> None:
    for name, (package, source) in SOURCES.items():
        imported = {module.partition(".")[0] for module, _ in read_imports(source, package, typing_too=True)}
        assert not imported & {"compressor_plugins", "plugins"}, name
        assert name == "compressor.plugins" or "compressor_plugins" not in source, f"{name} names compressor_plugins"


@pytest.mark.parametrize("name", PLUGIN_SOURCES)
def test_plugins_use_public_names(name: str) -> None:
    for module, part in read_imports(PLUGIN_SOURCES[name][1], PLUGIN_SOURCES[name][0], typing_too=True):
        if module.partition(".")[0] == "compressor":
            assert module in PUBLIC and not part.startswith("_"), f"{name} imports {part} of {module}"


LIGHT = {
    "contracts": "import compressor, compressor.contracts, compressor.plans",
    "names": "import compressor; assert 'load' in compressor.__all__ and not hasattr(compressor, 'lode')",
    "loading": "import compressor.plugins",
    "rehearsals": "import compressor.rehearsal",
    "schedules": "import compressor_plugins.schedules",
    "every plugin": "from compressor.plugins import load_plugins; assert not load_plugins().failures",
}


@pytest.mark.parametrize("what", LIGHT)
def test_help_and_schedules_come_without_torch(what: str) -> None:
    """In a fresh interpreter, for here everything is imported already."""
    heavy = "print(sorted({'torch', 'transformers', 'hydra', 'wandb', 'scipy'} & set(sys.modules)))"
    code = f"import sys; {LIGHT[what]}; {heavy}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_reader_of_imports_sees_them_all() -> None:
    source = """
import a.b, c
from d import e
if TYPE_CHECKING:
    from hidden import f
def g():
    from .h import i
    from .. import j
"""
    seen = [("a.b", ""), ("c", ""), ("d", "e"), ("x.y.h", "i"), ("x", "j")]
    assert sorted(read_imports(source, "x.y")) == sorted(seen)
    assert sorted(read_imports(source, "x.y", typing_too=True)) == sorted([*seen, ("hidden", "f")])
