"""Settings are checked before torch is imported, and what has no effect is said."""

import subprocess
import sys
from pathlib import Path

import pytest

from compressor.commands.early_checks import check_settings, list_ineffective
from compressor.errors import CompressorError
from compressor.settings import DataSettings, DataSource, ModelSettings, Settings, SweepMode, SweepSettings
from tests.support.command_line import call_command

REFUSE = """
import sys
from compressor.commands.main import choose_place
from compressor.commands.config import store_schemas
from compressor.errors import CompressorError
from compressor.plugins import installed
store_schemas(installed())
try:
    choose_place(sys.argv[1:], installed())
except CompressorError as error:
    print(error, "torch" in sys.modules)
"""


def make(**changes: object) -> Settings:
    return Settings(metric={}, compressor={}, schedule=None, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "override", ["model.path=/nowhere", "data=text", "+data.path=/nowhere.txt", "sweep.batch=9223372036854775808"]
)
def test_a_mistake_is_told_before_torch_is_imported_and_leaves_nothing(tmp_path: Path, override: str) -> None:
    line = ["data=text", override.removeprefix("+")] if override.startswith("+") else [override]
    command = [sys.executable, "-c", REFUSE, *line]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and done.stdout.endswith(" False\n"), done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataSettings(source=DataSource.hf)}, "`data=hf` needs `data.name`"),
        ({"data": DataSettings(source=DataSource.text)}, "`data=text` needs `data.path`"),
        ({"data": DataSettings(prefixes=0)}, "`data.prefixes` must be at least 1, got 0"),
        ({"data": DataSettings(prefixes=2**40)}, "`data.prefixes` must be at most 2147483647"),
        ({"seed": 2**63}, "`seed` must be at most"),
        ({"model": ModelSettings(path="")}, "`model.path` is needed"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CompressorError, match=message):
        check_settings(make(**changes))


def test_every_setting_without_effect_is_said(tmp_path: Path) -> None:
    assert not list(list_ineffective(make()))
    assert not list(list_ineffective(make(sweep=SweepSettings(mode=SweepMode.approximate, screen="kl", audit=1))))
    found = list(
        list_ineffective(
            make(
                data=DataSettings(path="a", name="b", subset="c", split="d", column="e"),
                model=ModelSettings(path=str(tmp_path), revision="main"),
                sweep=SweepSettings(screen="kl", delta=0.1, lazy=False, tolerance=0.1, audit=1, racing=True),
            )
        )
    )
    assert len(found) == 12
    assert "`data.path` has no effect with data=self; add data=text, or leave it out" in found


def test_a_run_says_what_has_no_effect(tmp_path: Path) -> None:
    small = (
        "data.prefixes=2",
        "data.prefix_tokens=4",
        "data.continuation_tokens=4",
        "tracking=none",
        "schedule=uniform",
    )
    ineffective = ("forecast.check=2", "data.path=a.txt", "model.revision=main", "export.verify=false")
    done = call_command(tmp_path, "run", *small, *ineffective, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    for key in ("forecast.check", "data.path", "model.revision"):
        assert sum(f"`{key}` has no effect" in line for line in done.stderr.splitlines()) == 1
