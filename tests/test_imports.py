"""Imports keep their direction: which package may import which, and what is too heavy to be imported by everybody."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compressor

CORE = Path(compressor.__file__).parent
PLUGINS = CORE.parent / "plugins"

BASIC = {"errors", "contracts"}
PARTS = BASIC | {"arguments", "settings", "model_paths", "export_formats", "progress", "resources", "artifacts"}
MODELS = PARTS | {"models"}
DATA = MODELS | {"data"}
SCORES = DATA | {"compression", "evaluation", "registry"}
OUTPUT = {"export", "tracking", "report"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "contracts": {"errors"},
    **dict.fromkeys(
        [
            "arguments",
            "settings",
            "model_paths",
            "export_formats",
            "progress",
            "resources",
            "hookspecs",
            "registry",
            "artifacts",
        ],
        BASIC,
    ),
    "plugins": BASIC | {"hookspecs", "registry"},
    "models": PARTS,
    "data": MODELS,
    **dict.fromkeys(["compression", "evaluation"], DATA | {"registry"}),
    **dict.fromkeys(["sensitivity", "recovery"], SCORES),
    "export": MODELS,
    **dict.fromkeys(["report", "tracking"], PARTS),
    "search": SCORES | {"sensitivity", "export"},
    "commands": SCORES | OUTPUT | {"sensitivity", "recovery", "search", "plugins", "hookspecs"},
    "testing": SCORES | {"search", "recovery", "plugins"},
}
"""Package, or module beside the packages -> those that it may import, besides itself."""

PUBLIC = {
    "compressor",
    *(f"compressor.{name}" for name in ("contracts", "errors", "artifacts.plan_file", "plugins")),
    *(f"compressor.sensitivity.{name}" for name in ("margin_law", "shrinkage", "unreached")),
}
"""What the built-in plugins may import; third parties need the first two."""

OWNERS = {
    "hydra": {"commands"},
    "wandb": {"tracking"},
    "pluggy": {"plugins", "hookspecs"},
    "compressed_tensors": {"export"},
    "altair": {"report"},
    "jinja2": {"report"},
}
"""Third-party package -> the only packages of ours that import it."""


def read_imports(source: str, package: str) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a module of `package`, also inside functions; name is "" for a whole module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from ((module, alias.name) for alias in node.names)


def find_imports(folder: Path, package: str) -> Iterator[tuple[str, str, str]]:
    """(importing module, imported module, name) of every import below a folder."""
    for path in sorted(folder.rglob("*.py")):
        parts = [package, *path.relative_to(folder).with_suffix("").parts]
        parent = ".".join(parts[:-1])
        name = parent if parts[-1] == "__init__" else ".".join(parts)
        for module, part in read_imports(path.read_text(encoding="utf-8"), parent):
            yield name, module, part


CORE_IMPORTS = list(find_imports(CORE, "compressor"))
PLUGIN_IMPORTS = list(find_imports(PLUGINS, "compressor_plugins"))


def find_room(module: str, name: str = "") -> str:
    """`compressor.models.loading` -> `models`; what `compressor` itself offers has no room."""
    parts = module.split(".")
    if len(parts) > 1:
        return parts[1]
    return name if name in MAY_IMPORT and (CORE / name).exists() | (CORE / f"{name}.py").exists() else ""


def test_packages_import_in_one_direction() -> None:
    wrong = [
        f"{importer} imports {module} {name}"
        for importer, module, name in CORE_IMPORTS
        if module.partition(".")[0] == "compressor" and (owner := find_room(importer))
        if (room := find_room(module, name)) and room != owner and room not in MAY_IMPORT[owner]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_names_every_package_and_has_no_circle() -> None:
    names = {path.stem for path in CORE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert {*MAY_IMPORT} == names - {"__init__", "tiny"}
    left = dict(MAY_IMPORT)
    while left:
        done = [name for name, needs in left.items() if not needs & left.keys() - {name}]
        assert done, f"a circle among {sorted(left)}"
        for name in done:
            del left[name]


@pytest.mark.parametrize("package", OWNERS)
def test_heavy_packages_have_one_owner(package: str) -> None:
    users = {
        find_room(importer) if importer.startswith("compressor.") else importer
        for importer, module, _ in CORE_IMPORTS + PLUGIN_IMPORTS
        if module.partition(".")[0] == package
    }
    assert users <= OWNERS[package]


def test_the_core_does_not_know_its_plugins() -> None:
    assert not [name for name, module, _ in CORE_IMPORTS if module.startswith(("compressor_plugins", "plugins"))]
    named = {path.name for path in CORE.rglob("*.py") if "compressor_plugins" in path.read_text(encoding="utf-8")}
    assert named <= {"plugins.py"}


def test_plugins_use_public_names() -> None:
    wrong = [
        f"{importer} imports {name} of {module}"
        for importer, module, name in PLUGIN_IMPORTS
        if module.partition(".")[0] == "compressor" and (module not in PUBLIC or name.startswith("_"))
    ]
    assert not wrong, "\n".join(wrong)


def test_test_modules_import_no_other_test_module() -> None:
    """What several of them need is in tests/support/."""
    wrong = [
        f"{importer} imports {module}"
        for importer, module, name in find_imports(Path(__file__).parent, "tests")
        if module.startswith("tests") and any(part.startswith("test_") for part in (*module.split("."), name))
    ]
    assert not wrong, "\n".join(wrong)


NAMES = "Metric, EstimableMetric, Compressor, CompressedWeight, Recovery, Schedule, hookimpl, CompressorError"
LIGHT = {
    "contracts": "import compressor, compressor.contracts, compressor.artifacts.plan_file",
    "names": "import compressor; assert 'load' in compressor.__all__ and not hasattr(compressor, 'lode')",
    "what plugin authors import": f"from compressor import {NAMES}",
    "loading": "import compressor.plugins",
    "dry runs": "import compressor.search.dry_run",
    "schedules": "import compressor_plugins.schedules",
    "reports": "import compressor.report, compressor.report.forecast_report",
    "every plugin": "from compressor.plugins import load_plugins; assert not load_plugins().failures",
}


def test_the_public_names_are_these() -> None:
    functions = {"run", "forecast", "load"}
    assert {*compressor.__all__} == {*NAMES.split(", ")} | functions | {"__version__"}
    for name in functions:
        assert callable(getattr(compressor, name)) and name in dir(compressor)
        assert not (CORE / name).exists() and not (CORE / f"{name}.py").exists(), "a module would hide the function"


@pytest.mark.parametrize("what", LIGHT)
def test_help_and_schedules_come_without_torch(what: str) -> None:
    """In a fresh interpreter, because this one has imported everything already."""
    packages = "'torch', 'transformers', 'hydra', 'wandb', 'scipy', 'altair', 'vl_convert', 'jinja2'"
    heavy = f"print(sorted({{{packages}}} & set(sys.modules)))"
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
    seen = [("a.b", ""), ("c", ""), ("d", "e"), ("hidden", "f"), ("x.y.h", "i"), ("x", "j")]
    assert sorted(read_imports(source, "x.y")) == sorted(seen)
