"""The files of a run: equal runs write equal bytes, and every file has the permissions that the user's umask gives."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from compressor.artifacts.run_files import FILES, FOLDERS, HYDRA, MARK, SAVED, STATUS
from compressor.artifacts.run_folder import write_status
from compressor.artifacts.run_status import FAILED, read_status
from compressor.commands import run as run_command
from compressor.commands.stopping import Stopped
from compressor.errors import OutputError
from compressor.settings import ExportSettings, ModelSettings, ResumeSettings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.budget.budget import Budget, Granularity
from compressor_plugins.schedules.uniform import Uniform
from tests.support.command_line import MAIN
from tests.support.families import save_checkpoint
from tests.support.runs import make_settings, run
from tests.support.slow import rarely
from tests.support.warm_processes import run_project

ARGUMENTS = (
    "run", "model=hf", "data.prefixes=2", "data.proof_prefixes=2", "data.prefix_tokens=4",
    "data.continuation_tokens=4", "metric=[fdtm,kl]", "schedule=budget", "schedule.targets=[0.5]",
    "compressor=[magnitude]", "schedule.granularity=row", "export.gguf=true", "resume.keep=true",
    "tracking=none", "hydra.run.dir=run",
)  # fmt: skip
OWN = {
    "report.html", "report.json", "scores.jsonl", "compressor.log", ".compressor", "status.json", "state/run.json",
    ".hydra/hydra.yaml", ".hydra/arguments.json",
}  # fmt: skip
"""Files with seconds, times, numbers of processes or working directories in them."""
NEEDED = {
    "model/model.safetensors", "model/config.json", "model/tokenizer.json", "model/compression.json", "model.gguf",
    "plan.json", "rows.safetensors", "model/compression/rows.safetensors", "reference.safetensors", "sequences.jsonl",
    "state/answers/000000.safetensors",
}  # fmt: skip


@dataclass(frozen=True)
class TwoRuns:
    """The folders of two equal runs in processes of their own, with all that they wrote, and their umasks."""

    folders: tuple[Path, Path]
    umasks: tuple[int, int] = (0o022, 0o027)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> TwoRuns:
    place = tmp_path_factory.mktemp("runs")
    base = save_checkpoint("llama", place / "base", torch.bfloat16, with_tokenizer=True)
    found = TwoRuns((place / "0", place / "1"))
    for folder, umask in zip(found.folders, found.umasks, strict=True):
        folder.mkdir()
        command = [sys.executable, "-c", f"import os; os.umask({umask}); {MAIN}", *ARGUMENTS, f"model.path={base}"]
        environment = {"COMPRESSOR_CACHE": str(folder / "cache"), "COMPRESSOR_CACHE_BYTES": "1000000"}
        done = run_project(command, folder, os.environ | environment)
        assert done.returncode == 0, done.stderr
    return found


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_runs_write_equal_files(two_runs: TwoRuns) -> None:
    first, second = (read_files(folder / "run") for folder in two_runs.folders)
    assert set(first) == set(second) >= NEEDED
    assert [name for name in first if name not in OWN and first[name] != second[name]] == []


def test_equal_runs_write_equal_caches(two_runs: TwoRuns) -> None:
    first, second = (read_files(folder / "cache") for folder in two_runs.folders)
    assert first == second
    assert {Path(name).parent.name for name in first} == {"references", "estimates"}


def test_every_file_has_the_permissions_of_the_umask(two_runs: TwoRuns) -> None:
    for folder, umask in zip(two_runs.folders, two_runs.umasks, strict=True):
        modes = {path: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
        wrong = {
            str(path): oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask
        }
        assert wrong == {}
        assert len(modes) > 20


def test_every_file_of_a_run_is_known_to_what_clears_its_folder(two_runs: TwoRuns) -> None:
    written = {path.name for path in (two_runs.folders[0] / "run").iterdir()}
    assert written <= {*FILES, *FOLDERS, *HYDRA, MARK, SAVED, STATUS, "state"}
    assert {*read_status(two_runs.folders[0] / "run")["files"]} == written & {*FILES}


@pytest.mark.parametrize("name", ["report.html", *rarely(["scores.jsonl", "rows.safetensors"])])
def test_a_file_that_the_run_has_not_written_is_not_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where it would write it later, as report.html."""
    settings = make_settings(Uniform([0.3]), Magnitude())

    def halt(self: object) -> None:
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run_command.Run, "prove", halt)
        run(tmp_path / "run", settings)
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(OutputError, match=f"has files that no command of compressor wrote: {name}; move them, or"):
        run(tmp_path / "run", settings)
    assert (tmp_path / "run" / name).read_text() == "mine"
    (tmp_path / "run" / name).unlink()
    assert run(tmp_path / "run", settings).status == "done"


def test_nothing_of_a_failed_run_stays_beside_a_finished_one_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run writes a model of integers, model.gguf and amounts per row; the second writes none of these."""
    base = ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)))

    def fail(*arguments: object) -> None:
        raise OutputError("the last step failed")

    for compressor, schedule in ((Int8(), Uniform()), (Magnitude(), Budget([0.5], granularity=Granularity.row))):
        first = make_settings(schedule, compressor, model=base, export=ExportSettings(gguf=True, verify=False))
        with monkeypatch.context() as patch, pytest.raises(OutputError, match="the last step failed"):
            patch.setattr(run_command, "sum_up", fail)
            run(tmp_path / "run", replace(first, resume=ResumeSettings(accept=["all"])))
        assert (tmp_path / "run" / "model.gguf").is_file()
    assert (tmp_path / "run" / "rows.safetensors").is_file()
    for name in ("model-unverified.gguf", ".verification.abc.tmp"):
        (tmp_path / "run" / name).touch()
    status = read_status(tmp_path / "run")
    write_status(tmp_path / "run", FAILED, status["command"], [*status["files"], "model-unverified.gguf"])
    second = make_settings(Uniform([0.3]), Magnitude(), model=base)
    run(tmp_path / "run", replace(second, resume=ResumeSettings(accept=["all"])))
    run(tmp_path / "fresh", second)
    left, fresh = (sorted(read_files(tmp_path / name)) for name in ("run", "fresh"))
    assert left == fresh
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "fresh")]
    assert weights[0] == weights[1]
