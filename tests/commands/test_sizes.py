"""`schedule.size` from the command line: the README's first command, and which compressors it implies."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compressor.commands.checked_overrides import RENAMED, complete_overrides, flatten_keys
from compressor.commands.config import compose_groups, open_hydra, store_schemas
from compressor.plugins import installed
from tests.conftest import SHARED_MODELS
from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.slow import rarely, rarely_cases

FEW = ["data.prefixes=4", "data.prefix_tokens=6", "data.continuation_tokens=8", "tracking=none", "hydra.run.dir=out"]


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call_command(folder, "run", *arguments, *FEW)


def measure_weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.fixture(params=rarely(["generated", "trained"]))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "generated":
        sizes = {"hidden_size": 64, "intermediate_size": 160}
        return save_checkpoint("llama", tmp_path / "base", with_tokenizer=True, **sizes)
    folder = SHARED_MODELS / "tinystories-656k"
    if not folder.is_dir():
        pytest.skip(f"the trained model {folder.name} is not beside the checkout in ../shared/models")
    return folder


def test_the_first_command_halves_the_weight_files(checkpoint: Path, tmp_path: Path) -> None:
    few = ["metric=[fdtm]"] if checkpoint.parent == SHARED_MODELS else []  # perplexity is that of a long text
    done = call(tmp_path, "model=hf", f"model.path={checkpoint}", "schedule.size=50%", *few)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["config"]["compressor"]) == {"int8", "int4"}
    saved = measure_weights(tmp_path / "out" / "model")
    assert saved == report["final"]["bytes"]
    assert 0.4 * measure_weights(checkpoint) < saved <= 0.5 * measure_weights(checkpoint)


@pytest.mark.parametrize(("size", "message"), [
    ("1%", "the budget of `schedule.size=1%` ("),
    *rarely_cases([("1kB", "(1000 bytes) is out of reach, the smallest is ")]),
    ("50", "`schedule.size` must be a percentage or a number of bytes with a unit, got '50'; give a percentage of"),
])  # fmt: skip
def test_a_size_that_cannot_be_had_is_an_error_before_any_pass(size: str, message: str, tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path / "base", with_tokenizer=True)
    failed = call(tmp_path, "model=hf", "model.path=base", f"schedule.size={size}")
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 1 and line.startswith("error: ") and message in line
    report = tmp_path / "out" / "report.json"
    assert not report.exists() or "reference" not in json.loads(report.read_text())["phases"]


def choose(*overrides: str) -> tuple[list[str], Any]:
    """Which override the given ones imply, and the compressors of the configuration."""
    plugins = installed()
    store_schemas(plugins)
    with open_hydra():
        complete, composed = complete_overrides(overrides, plugins)
    implied, given = complete[: len(complete) - len(overrides)], complete[len(complete) - len(overrides) :]
    assert given == list(overrides)
    return implied, list(composed.compressor)


INTEGERS, PRUNING = ["int8", "int4"], ["magnitude"]


@pytest.mark.parametrize(
    ("overrides", "compressors"),
    [
        ([], PRUNING),
        (["schedule.size=50%"], INTEGERS),
        (["schedule.bits=null"], PRUNING),
        (["schedule.bits=5,6"], INTEGERS),
        (["schedule.size=50%", "compressor=int8"], ["int8"]),
        (["experiment=mixed_tiny", "schedule.bits=6"], INTEGERS),
        (["experiment=tiny_sparsify"], PRUNING),
        *rarely_cases(
            [
                (["schedule.targets=[0.3]"], PRUNING),
                (["schedule.size=2.8MB"], INTEGERS),
                (["schedule.bytes=1000"], INTEGERS),
                (["schedule.bits=5"], INTEGERS),
                (["schedule=beam", "schedule.bits=5"], INTEGERS),
                (["schedule.size=50%", "compressor=[magnitude,int8]"], ["magnitude", "int8"]),
                (["compressor=rtn,int4", "schedule.bits=5"], ["rtn"]),
                (["schedule.size=50%", "compressor.int4.group=64"], INTEGERS),
                (["experiment=mixed_tiny"], INTEGERS),
                (["experiment=mixed_tiny", "compressor=[rtn]"], ["rtn"]),
                (["experiment=int8_tiny", "schedule.bits=9"], ["int8"]),
            ]
        ),
    ],
)
def test_integers_are_the_default_where_a_size_is_given(overrides: list[str], compressors: list[str]) -> None:
    implied, chosen = choose(*overrides)
    assert chosen == compressors
    assert implied in ([], ["compressor=[int8,int4]"])


@pytest.mark.parametrize("overrides", [["schedule.size=50%"], ["experiment=mixed_tiny", "schedule.bits=6"]])
def test_complete_overrides_are_complete(overrides: list[str]) -> None:
    plugins = installed()
    store_schemas(plugins)
    with open_hydra():
        complete, composed = complete_overrides(overrides, plugins)
        assert complete_overrides(complete, plugins) == (complete, composed)


def test_help_and_cfg_show_what_a_size_implies(tmp_path: Path) -> None:
    for flags in (["--help"], ["--cfg", "job"]):
        shown = call_command(tmp_path, "run", *flags, "schedule.size=50%").stdout
        assert "  int8:\n" in shown and "  int4:\n" in shown and "  magnitude:\n" not in shown


def test_a_renamed_key_is_accepted_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(RENAMED, "data.beginnings", "data.prefixes")
    plugins = installed()
    store_schemas(plugins)
    with open_hydra():
        complete, composed = complete_overrides(["data.beginnings=5", "seed=1"], plugins)
    assert complete == ["data.prefixes=5", "seed=1"] and composed.data.prefixes == 5
    assert [record.getMessage() for record in caplog.records] == [
        "`data.beginnings` is now called `data.prefixes`; use that name"
    ]


def test_every_renamed_key_leads_to_one_that_exists() -> None:
    plugins = installed()
    store_schemas(plugins)
    with open_hydra():
        known = set(flatten_keys(compose_groups([])))
        for old, new in RENAMED.items():
            assert old not in known and new in known
