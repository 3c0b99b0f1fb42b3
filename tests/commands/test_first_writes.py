"""A command that is killed after any of its first writes leaves a folder in which the next one goes on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from compressor.artifacts.run_status import DONE
from tests.support.command_line import MAIN, call_command
from tests.support.families import save_checkpoint
from tests.support.slow import rarely_cases
from tests.support.warm_processes import run_project

FEW = (
    "run", "model=hf", "data.prefixes=2", "data.proof_prefixes=2", "data.prefix_tokens=4", "tracking=none",
    "data.continuation_tokens=4", "metric=[fdtm]", "schedule=uniform", "schedule.targets=[0.5]", "export.verify=false",
)  # fmt: skip
KINDS = {"run": ("hydra.run.dir=out",), "sweep": ("hydra.sweep.dir=out", "seed=1,2", "-m")}
KILLED_AFTER = """
import os
left, replace = {count}, os.replace

def replace_and_count(*paths):
    global left
    if left == 0:
        os._exit(99)
    replace(*paths)
    left -= 1
    print(paths[1], flush=True)
    if left == 0:
        os._exit(99)

os.replace = replace_and_count
"""
"""The process ends at once when so many files were written; with 0, just before the first has its name."""
FIRST = [".hydra/arguments.json", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"]
WRITTEN = {
    "run": [*FIRST, "status.json", "state/run.json"],
    "sweep": [FIRST[0], *(f"0/{name}" for name in (*FIRST[1:], "status.json", "state/run.json"))],
}
"""What is written first, in this order: the status before anything that belongs to a run."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("base") / "llama", with_tokenizer=True)


def read_statuses(folder: Path) -> set[str]:
    return {json.loads(path.read_text())["status"] for path in folder.rglob("status.json")}


@pytest.mark.parametrize(
    ("kind", "count"),
    [("run", 5), *rarely_cases([("run", count) for count in (0, 1, 2, 4, 6)]),
     *rarely_cases([("sweep", count) for count in (0, 1, 2, 4, 5, 6)])],
)  # fmt: skip
def test_a_command_that_is_killed_after_its_first_writes_goes_on(
    kind: str, count: int, base: Path, tmp_path: Path
) -> None:
    line = (*FEW, f"model.path={base}", *KINDS[kind])
    code = f"{KILLED_AFTER.format(count=count)}{MAIN}"
    killed = run_project([sys.executable, "-c", code, *line], tmp_path)
    named = [line for line in killed.stdout.splitlines() if line.endswith(("json", "yaml"))]
    written = [str((tmp_path / name).relative_to(tmp_path / "out")) for name in named]
    assert (killed.returncode, written) == (99, WRITTEN[kind][:count])
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "out", again / "out")
    done = call_command(again, *line)
    assert (done.returncode, done.stderr) == (0, "") and read_statuses(again) == {DONE}
    assert list(again.rglob("*.tmp")) == []
    done = call_command(tmp_path, "resume", "out")
    if count == 0:
        said = "error: out holds a run that was stopped before it did anything; start its command again\n"
        assert (done.returncode, done.stderr) == (1, said)
    else:
        assert (done.returncode, done.stderr) == (0, "") and read_statuses(tmp_path / "out") == {DONE}
