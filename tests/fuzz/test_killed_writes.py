"""A run that is killed around any operation on a file goes on, ends as if undisturbed, and leaves nothing behind."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compressor.artifacts.run_status import DONE, read_status
from tests.support.families import save_checkpoint
from tests.support.interrupted_writes import KILLED, NEVER, SCHEDULES, run_until
from tests.support.slow import rarely

RESULTS = (
    "plan.json", "sequences.jsonl", "model/model.safetensors", "model/config.json", "reference.safetensors",
)  # fmt: skip
NEEDED = ("report.json", "report.html", "plan.json", "model/model.safetensors")
"""What a run that says `done` has."""
QUICK, SHARDS = 1, 8


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody kills, and how many moments it has."""

    base: Path
    schedule: str
    folder: Path
    moments: int


def list_names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module", params=["fdt_allocation", *rarely(sorted({*SCHEDULES} - {"fdt_allocation"}))])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    place = tmp_path_factory.mktemp(request.param)
    base = save_checkpoint("llama", place / "base", with_tokenizer=True)
    assert run_until(NEVER, place / "whole", base, request.param)[0] == 0
    # Counted once the references are in the cache, as they are for the runs that are killed.
    status, moments = run_until(NEVER, place / "counted", base, request.param)
    assert status == 0 and moments > 50
    return Undisturbed(base, request.param, place / "whole", moments)


def check_moment(whole: Undisturbed, folder: Path, moment: int) -> None:
    """Kill a run at a moment, start it again, and compare."""
    assert run_until(moment, folder, whole.base, whole.schedule)[0] == KILLED, moment
    if read_status(folder).get("status") == DONE:
        assert all((folder / name).is_file() for name in NEEDED), moment
    assert run_until(NEVER, folder, whole.base, whole.schedule)[0] == 0, moment
    assert read_status(folder)["status"] == DONE
    assert json.loads((folder / "report.json").read_text())["status"] == "done"
    for name in RESULTS:
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), (moment, name)
    assert list_names(folder) == list_names(whole.folder), moment


def test_a_run_killed_at_some_moments(undisturbed: Undisturbed, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).choice(undisturbed.moments, QUICK, replace=False).tolist()
    for moment in {*drawn, undisturbed.moments - 1}:
        check_moment(undisturbed, tmp_path / str(moment), moment)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_run_killed_at_every_moment(shard: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    for moment in range(shard, undisturbed.moments, SHARDS):
        check_moment(undisturbed, tmp_path / str(moment), moment)
