"""A full disk, or a quota: noticed before the search, or one line later, and then the run goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.artifacts.run_folder import DONE, read_status
from compressor.commands.run import Run
from compressor.errors import CompressorError
from compressor_plugins.schedules.uniform import Uniform
from tests.support.command_line import MAIN, call_command
from tests.support.runs import make_settings, run
from tests.support.warm_processes import run_project

SHORT = (
    "run", "schedule=uniform", "schedule.targets=[0.5]", "metric=[fdtm]", "tracking=none", "export.verify=false",
    "data.prefixes=2", "data.prefix_tokens=4", "data.continuation_tokens=4", "hydra.run.dir=out",
)  # fmt: skip


def test_a_quota_is_noticed_before_the_search(tmp_path: Path) -> None:
    """The limit on the size of a file refuses what a quota refuses."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY)); "
    done = run_project([sys.executable, "-c", limit + MAIN, *SHORT], tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "out, which cannot be written (File too large); raise the quota, or choose another disk" in line
    assert not (tmp_path / "out" / "scores.jsonl").exists()
    assert not list((tmp_path / "out").glob(".space*"))
    assert call_command(tmp_path, *SHORT).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    (disk := tmp_path / "disk").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    """Write until nothing more can be written."""
    with (path := disk / "filling").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def test_a_small_disk_is_noticed_before_the_search(small_disk: Path) -> None:
    filling = small_disk / "filling"
    filling.write_bytes(bytes(15 << 20))
    with pytest.raises(CompressorError, match=r"the run leaves .* MB in .*, where .* are free; free .*, or choose"):
        run(small_disk / "out", make_settings(Uniform(targets=(0.5,))))
    assert not (small_disk / "out" / "scores.jsonl").exists()


@pytest.mark.parametrize("phase", ["build_references", "prove", "save"])
def test_a_disk_that_fills_up_costs_nothing_but_time(
    phase: str, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(Uniform(targets=(0.3, 0.5)))
    run(whole := tmp_path / "whole", settings)
    real = getattr(Run, phase)

    def fill_first(self: Run, *arguments: object) -> object:
        fill(small_disk)
        return real(self, *arguments)

    monkeypatch.setattr(Run, phase, fill_first)
    with pytest.raises(CompressorError, match=r"cannot write .*No space left on device") as caught:
        run(out := small_disk / "out", settings)
    assert "\n" not in str(caught.value)
    assert not (out / "model").exists() and read_status(out).get("status") != DONE
    (small_disk / "filling").unlink()
    monkeypatch.setattr(Run, phase, real)
    run(out, settings)
    for name in ("plan.json", "model/model.safetensors", "sequences.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not [path for path in out.iterdir() if path.name.endswith((".tmp", ".partial", ".old"))]
    assert os.path.exists(out / "report.html")
