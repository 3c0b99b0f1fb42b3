"""The files of a run: equal runs write equal bytes, and every file has the permissions that the user's umask gives."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.command_line import call_fresh_command
from tests.support.families import save_checkpoint

ARGUMENTS = (
    "run", "model=hf", "data.prefixes=2", "data.proof_prefixes=2", "data.prefix_tokens=4",
    "data.continuation_tokens=4", "metric=[fdtm,kl]", "schedule=budget", "schedule.targets=[0.5]",
    "compressor=[magnitude]", "schedule.granularity=row", "export.gguf=true", "resume.keep=true",
    "tracking=none", "hydra.run.dir=run",
)  # fmt: skip
OWN = {
    "report.html", "report.json", "scores.jsonl", "compressor.log", ".compressor", "status.json", "state/run.json",
    ".hydra/hydra.yaml",
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
    for number, (folder, umask) in enumerate(zip(found.folders, found.umasks, strict=True)):
        before = os.umask(umask)
        try:
            folder.mkdir()
            environment = {"COMPRESSOR_CACHE": str(folder / "cache"), "COMPRESSOR_CACHE_BYTES": "1000000"}
            done = call_fresh_command(
                folder, *ARGUMENTS, f"model.path={base}", PYTHONHASHSEED=str(number), OMP_NUM_THREADS="1", **environment
            )
            assert done.returncode == 0, done.stderr
            again = call_fresh_command(folder, "resume", "run", **environment)
            assert again.returncode == 0, again.stderr
        finally:
            os.umask(before)
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
