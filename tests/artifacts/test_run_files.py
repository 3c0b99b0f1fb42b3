"""Which files in the folder of a run are ours: only these are removed, and nothing is written through a link."""

from pathlib import Path

import pytest

from compressor.artifacts.files import replaced_folder
from compressor.artifacts.run_files import (
    MARK,
    SAVED,
    STATE,
    find_foreign,
    find_leftovers,
    find_links,
    is_unused,
    list_jobs,
    read_saved,
    record_saved,
    remove_state,
)


def save(folder: Path, *names: str) -> None:
    """Save a model with these files, as an export does."""
    with replaced_folder(folder) as partial:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).touch()
        record_saved(folder, partial)


def test_files_beside_those_that_were_saved_are_foreign(tmp_path: Path) -> None:
    (tmp_path / MARK).touch()
    save(tmp_path / "model", "model.safetensors", "compression/rows.safetensors")
    save(tmp_path / "model", "model-00001-of-00002.safetensors", "tokenizer.json")
    assert list(find_foreign(tmp_path)) == []
    (tmp_path / "model").rename(tmp_path / "model-unverified")
    save(tmp_path / "model", "model.safetensors")
    mine = [
        tmp_path / "model" / "deep" / "notes.txt",
        tmp_path / "model" / "link",
        tmp_path / "model-unverified" / "model-00003-of-00002.safetensors",
        tmp_path / STATE / "notes.txt",
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        if path.name == "link":
            path.symlink_to(tmp_path)
        else:
            path.touch()
    assert sorted(find_foreign(tmp_path)) == sorted(mine)


def test_only_in_the_folder_of_a_run_is_recorded_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path / "model", "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("line", [b"\xff", b"5", b"[[1]]", b"{", b'["a"'])
def test_a_damaged_line_names_no_file(line: bytes, tmp_path: Path) -> None:
    (tmp_path / SAVED).write_bytes(line + b'\n["config.json"]\n')
    assert read_saved(tmp_path) == {"config.json"}


def test_a_file_of_the_user_in_the_state_outlives_it(tmp_path: Path) -> None:
    for name in ("run.json", "answers/000000.safetensors", "answers/.000001.safetensors.ab.tmp"):
        (tmp_path / STATE / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / STATE / name).touch()
    (tmp_path / STATE / "notes.txt").touch()
    remove_state(tmp_path)
    assert [path.name for path in (tmp_path / STATE).rglob("*")] == ["notes.txt"]
    (tmp_path / STATE / "notes.txt").unlink()
    remove_state(tmp_path)
    assert not (tmp_path / STATE).exists()


def test_only_leftovers_of_ours_are_found(tmp_path: Path) -> None:
    ours = {".plan.json.0a1b2c3d.tmp", ".status.json.0a1b2c3d.tmp", ".verification.abc.tmp", ".model.partial"}
    for name in {*ours, ".notes.old", ".mine.tmp", ".thesis.partial", "model.old"}:
        (tmp_path / name).touch()
    assert {path.name for path in find_leftovers(tmp_path)} == ours


@pytest.mark.parametrize(
    "name", [".hydra", "compressor.log", "state", "model", "model-unverified", "plan.json", "scores.jsonl", "0", "10",
             "multirun.yaml", "comparison.json", "status.json", ".hydra/config.yaml", "state/answers",
             "state/answers/000000.safetensors"],
)  # fmt: skip
def test_links_in_places_where_a_run_writes_are_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note of the user").symlink_to(tmp_path)
    assert list(find_links(tmp_path / "run")) == []
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "nowhere")
    assert list(find_links(tmp_path / "run")) == [link]


def test_jobs_stand_in_their_order(tmp_path: Path) -> None:
    for name in ("10", "9", "0", "x1", "-1", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "1").touch()
    assert [path.name for path in list_jobs(tmp_path)] == ["0", "9", "10"]


def test_a_folder_is_unused_until_there_is_more_than_how_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    for name in (MARK, "multirun.yaml", "0/.hydra/config.yaml"):
        (tmp_path / name).touch()
    assert is_unused(tmp_path)
    (tmp_path / "0" / "compressor.log").touch()
    assert not is_unused(tmp_path)
