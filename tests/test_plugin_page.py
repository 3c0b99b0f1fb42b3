"""docs/writing-a-plugin.md is a plugin: its snippets are written to files, installed, tested and used."""

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from compressor.compression.calibration import CALIBRATION_DATA
from compressor.contracts import Reads
from compressor.contracts.requests import Request
from tests.support.command_line import MAIN
from tests.support.warm_processes import run_project

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))
"""File -> what the page says is in it."""
EXAMPLE = ROOT / "docs" / "example-plugin"
ALLOWED = {"compressor", "compressor.contracts"}
"""What a plugin may import of the project; its tests also `compressor.testing`."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files in a folder, and the entry point that pip would write."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, text in SNIPPETS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    project = tomllib.loads(SNIPPETS["pyproject.toml"])["project"]
    info = folder / f"my_plugin-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entry_points = configparser.ConfigParser()
    entry_points.read_dict(project["entry-points"])
    with (info / "entry_points.txt").open("w") as file:
        entry_points.write(file)
    return folder


def call(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return run_project([sys.executable, *arguments], site, environment)


def test_every_snippet_is_a_file() -> None:
    assert len(SNIPPETS) == PAGE.count("```") // 2
    assert set(SNIPPETS) == {
        "pyproject.toml", "my_plugin/__init__.py", "my_plugin/top_agreement.py", "my_plugin/bits4.py",
        "my_plugin/masked_wanda.py", "my_plugin/cheapest.py", "my_plugin/solve_then_train.py",
        "tests/test_contracts.py", "tests/test_run.py",
    }  # fmt: skip


def test_the_plugin_of_the_page_is_loaded(site: Path) -> None:
    listed = json.loads(call(site, "-c", MAIN, "plugins", "--json").stdout)
    assert not listed["failures"]
    named = {
        "metrics": ["top_agreement"],
        "compressors": ["bits4", "masked_wanda"],
        "schedules": ["cheapest"],
        "recoveries": ["solve_then_train"],
    }
    for kind, names in named.items():
        for name in names:
            assert listed[kind][name]["distribution"] == "my-plugin"


def test_the_plugin_of_the_page_passes_its_own_tests(site: Path) -> None:
    warm = "ignore:Module already imported so cannot be rewritten"  # by the process that this one is forked from
    done = call(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-W", warm, "tests")
    assert done.returncode == 0, done.stdout


def test_the_last_command_of_the_page_works(site: Path) -> None:
    (command,) = re.findall(r"after that `compressor (.*?)` works", PAGE)
    few = ["data.prefixes=4", "data.prefix_tokens=6", "data.continuation_tokens=8", "tracking=none"]
    done = call(site, "-c", MAIN, *command.split(), *few, "hydra.run.dir=out")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((site / "out" / "report.json").read_text())
    assert {part["compressor"] for part in report["components"].values()} == {"bits4"}


def list_imports(source: str) -> set[str]:
    """Modules of the project that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name for name in names if name.partition(".")[0] == "compressor"}
    return found


def test_plugins_import_what_they_may() -> None:
    files = {name: text for name, text in SNIPPETS.items() if name.endswith(".py")}
    files |= {str(path.relative_to(EXAMPLE)): path.read_text() for path in EXAMPLE.rglob("*.py")}
    for name, text in files.items():
        allowed = ALLOWED | ({"compressor.testing"} if name.startswith("tests/") else set())
        assert list_imports(text) <= allowed, name


def test_tables_of_the_page_are_complete() -> None:
    first = set(re.findall(r"^\| `([\w.]+)", PAGE, flags=re.MULTILINE))
    assert set(CALIBRATION_DATA) <= first
    assert {f"Reads.{member.name}" for member in Reads} <= first
    assert {request.__name__ for request in Request.__subclasses__()} <= first
