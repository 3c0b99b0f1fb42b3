"""A run that is killed around any operation on a file goes on, ends as if undisturbed, and leaves nothing behind."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from compressor.artifacts import answers
from compressor.artifacts.run_folder import DONE, read_status
from compressor.errors import OutputError
from compressor.plugins import installed
from compressor.settings import ComponentSettings, DataSettings, ModelSettings, Settings
from tests.support.families import save_checkpoint
from tests.support.interrupted_writes import KILLED, count_operations
from tests.support.runs import make_settings, run

RESULTS = ("plan.json", "sequences.jsonl", "model/model.safetensors", "model/config.json")
REFERENCE = "reference.safetensors"
NEEDED = ("report.json", "report.html", "plan.json", "model/model.safetensors")
"""What a run that says `done` has."""
SCHEDULES = {"uniform": {"targets": [0.3, 0.5]}, "fdt_allocation": {"targets": [0.3]}}
FEW = DataSettings(prefixes=2, proof_prefixes=2, prefix_tokens=4, continuation_tokens=4)
QUICK, SHARDS = 3, 8


def make(base: Path, schedule: str) -> Settings:
    chosen = installed().schedules[schedule](**SCHEDULES[schedule])
    parts = ComponentSettings(include=[r"layers\.0\.self_attn"])
    settings = make_settings(chosen, model=ModelSettings(path=str(base)), components=parts, data=FEW)
    settings.metric = {name: settings.metric[name] for name in ("fdtm",)}
    return settings


def go(folder: Path, settings: Settings) -> None:
    answers.BLOCK_SECONDS = 0.0  # in a process of its own
    run(folder, settings)


def list_names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module", params=SCHEDULES)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path, int]:
    """Settings, the folder of a whole run, and how many moments it has."""
    place = tmp_path_factory.mktemp(request.param)
    settings = make(save_checkpoint("llama", place / "base", with_tokenizer=True), request.param)
    assert count_operations(partial(go, place / "whole", settings)) == 0
    # Counted once the references are in the cache, as they are for the runs that are killed.
    assert count_operations(partial(go, place / "counted", settings), log=place / "moments") == 0
    return settings, place / "whole", int((place / "moments").read_text())


def check_moment(settings: Settings, whole: Path, folder: Path, moment: int) -> None:
    """Kill a run at a moment, start it again, and compare."""
    assert count_operations(partial(go, folder, settings), kill_at=moment) == KILLED, moment
    if read_status(folder).get("status") == DONE:
        assert all((folder / name).is_file() for name in NEEDED), moment

    def again() -> None:
        try:
            go(folder, settings)
        except OutputError as error:
            assert "already holds a finished run" in str(error)

    assert count_operations(again) == 0, moment
    assert read_status(folder)["status"] == DONE
    assert json.loads((folder / "report.json").read_text())["status"] == "done"
    for name in RESULTS:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), (moment, name)
    assert np.array_equal(load_file(folder / REFERENCE)["tokens"], load_file(whole / REFERENCE)["tokens"])
    assert list_names(folder) == list_names(whole), moment


def test_a_run_killed_at_some_moments(undisturbed: tuple[Settings, Path, int], tmp_path: Path) -> None:
    settings, whole, moments = undisturbed
    drawn = np.random.default_rng(0).choice(moments, QUICK, replace=False).tolist()
    for moment in {*drawn, moments - 1}:
        check_moment(settings, whole, tmp_path / str(moment), moment)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_run_killed_at_every_moment(shard: int, undisturbed: tuple[Settings, Path, int], tmp_path: Path) -> None:
    settings, whole, moments = undisturbed
    for moment in range(shard, moments, SHARDS):
        check_moment(settings, whole, tmp_path / str(moment), moment)
