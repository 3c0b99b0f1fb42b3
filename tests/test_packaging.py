"""A real wheel and a really installed third-party plugin, run through the command line from another folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.command_line import MAIN
from tests.support.warm_processes import run_project

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.prefixes=4", "data.prefix_tokens=6", "data.continuation_tokens=8",
    "tracking=none", "export.verify=false", "components.include=[layers.0.self_attn]",
]  # fmt: skip


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def call(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script's entry point, with `site` in front of everything installed."""
    command = [sys.executable, "-c", "from compressor.commands.entry import main; main()", *arguments]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def call_warm(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in a process that has imported this checkout, and finds the plugins that `site` has beside it."""
    return run_project([sys.executable, "-c", MAIN, *arguments], folder, os.environ | {"PYTHONPATH": str(site)})


def copy_tracked(folder: Path, target: Path) -> Path:
    """The tracked files below `folder`, elsewhere: setuptools builds in place, and takes along what lies in build/."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(copy_tracked(ROOT, folder / "source")), "--wheel-dir", str(folder))
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_option(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    renamed = {"plugins/": "compressor_plugins/", "conf/": "compressor/conf/", "compressor/": "compressor/"}
    for path in tracked:
        for folder, package in renamed.items():
            if path.startswith(folder):
                assert package + path.removeprefix(folder) in held
    assert not [name for name in held if name.startswith(("tests/", "docs/"))]


def test_the_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--target", str(site), str(wheel))
    where = subprocess.run(
        [sys.executable, "-c", "import compressor, compressor_plugins; print(compressor.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    done = call(tmp_path, site, "run", "schedule=uniform", "metric=[fdtm]", "hydra.run.dir=out", *SMALL)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "done"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example plugin, installed for real."""
    site = tmp_path_factory.mktemp("site")
    source = copy_tracked(ROOT / "docs" / "example-plugin", tmp_path_factory.mktemp("example"))
    pip("install", "--target", str(site), str(source))
    return site


def test_an_installed_plugin_is_listed_and_helps(example: Path, tmp_path: Path) -> None:
    listed = json.loads(call(tmp_path, example, "plugins", "--json").stdout)
    assert listed["metrics"]["top_agreement"]["distribution"] == "compressor-example"
    assert listed["compressors"]["ternary"]["version"] == "0.1.0"
    shown = call_warm(tmp_path, example, "--help").stdout
    assert "top_agreement" in shown and "ternary" in shown


def test_an_installed_plugin_runs(example: Path, tmp_path: Path) -> None:
    options = ["compressor=ternary", "compressor.ternary.threshold=0.6", "metric=[fdtm,top_agreement]"]
    done = call_warm(tmp_path, example, "run", *options, "schedule=uniform", "hydra.run.dir=out", *SMALL)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {part["compressor"] for part in report["components"].values()} == {"ternary"}
    assert 0 <= report["final"]["scores"]["top_agreement"]["mean"] <= 1
    assert all(2 < part["packed_bits_per_weight"] < 3 for part in report["components"].values())
    options = json.loads((tmp_path / "out" / "plan.json").read_text()).popitem()[1]["options"]
    assert options == {"threshold": 0.6}


@pytest.mark.slow
def test_an_installed_plugin_takes_part_in_a_multirun(example: Path, tmp_path: Path) -> None:
    sweep = ["-m", "compressor=ternary,int8", "schedule=uniform", "metric=[fdtm,top_agreement]", "hydra.sweep.dir=out"]
    done = call_warm(tmp_path, example, "run", *sweep, *SMALL)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["status"] for row in rows] == ["done", "done"]
    assert rows[0]["amount"] > rows[1]["amount"]


def test_the_example_passes_its_own_tests(example: Path) -> None:
    # A forked process has imported some plugins of pytest already.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "docs" / "example-plugin"), *quiet]
    done = run_project(command, ROOT, os.environ | {"PYTHONPATH": str(example)})
    assert done.returncode == 0, done.stdout
