"""Whatever a run writes has the permissions that the user's umask gives, so that colleagues can read it, or cannot."""

import sys
from pathlib import Path

import pytest

from tests.support.command_line import MAIN
from tests.support.slow import rarely
from tests.support.warm_processes import run_project


@pytest.mark.parametrize("umask", [0o027, *rarely([0o022])])
def test_files_have_the_users_umask(umask: int, tmp_path: Path) -> None:
    settings = (
        "compressor=int8", "schedule=uniform", "schedule.targets=[0.5]", "metric=[fdtm,kl]", "data.prefixes=2",
        "data.prefix_tokens=4", "data.continuation_tokens=4", "tracking=none", "export.verify=false",
        "export.gguf=true", "resume.keep=true", "hydra.run.dir=out",
    )  # fmt: skip
    lines = f"os.environ['COMPRESSOR_CACHE'] = 'cache'; os.environ.pop('COMPRESSOR_CACHE_BYTES'); os.umask({umask})"
    done = run_project([sys.executable, "-c", f"import os; {lines}; {MAIN}", "run", *settings], tmp_path)
    assert done.returncode == 0, done.stderr
    written = [*(tmp_path / "out").rglob("*"), *(tmp_path / "cache").rglob("*")]
    names = {path.name for path in written}
    assert {
        "model.safetensors",
        "model.gguf",
        "reference.safetensors",
        "report.html",
        "status.json",
        "run.json",
    } <= names
    assert {path.parent.name for path in written} >= {"references", "state", "answers", "model", ".hydra"}
    for path in written:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
