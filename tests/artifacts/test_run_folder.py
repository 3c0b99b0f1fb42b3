"""Results go only into folders that are ours, one process at a time, and a folder says what its run is doing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor.artifacts import run_folder
from compressor.artifacts.run_files import MARK, STATUS
from compressor.artifacts.run_folder import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    check_folder,
    clear_results,
    heartbeat,
    held_folder,
    read_status,
    working_in,
    write_status,
)
from compressor.errors import OutputError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "base"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("models/base", "is"),
        ("models/base/out/deep", "lies in"),
        ("models", "contains"),
        (".", "contains"),
        ("models/../models/base/.", "is"),
        ("link", "is"),
    ],
)
def test_the_base_is_never_touched(place: str, where: str, tmp_path: Path, base: Path) -> None:
    (tmp_path / "link").symlink_to(base)
    with pytest.raises(
        OutputError, match=rf"^the folder for results .* {where} `model.path` .*, which must not be touch"
    ):
        check_folder(tmp_path / place, [("model.path", base)])


def test_a_text_that_is_read_is_not_in_the_folder(tmp_path: Path) -> None:
    text = tmp_path / "texts" / "a.txt"
    text.parent.mkdir()
    text.write_text("once")
    with pytest.raises(OutputError, match=r"contains `data\.path`"):
        check_folder(text.parent, [("data.path", text)])
    check_folder(text.parent / "out", [("data.path", text)])  # a new folder beside a text harms nothing


def test_a_folder_with_foreign_files_is_refused_and_names_them(tmp_path: Path) -> None:
    for name in ("b", "a", "d", "c"):
        (tmp_path / name).touch()
    with pytest.raises(
        OutputError, match="has files that no command of compressor wrote: a, b, c and 1 more; choose a"
    ):
        check_folder(tmp_path, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_empty_new_and_own_folders_are_taken(tmp_path: Path) -> None:
    check_folder(tmp_path, [])
    check_folder(tmp_path / "new" / "deep", [])
    with working_in(tmp_path / "own", "compressor run"):
        (tmp_path / "own" / "plan.json").write_text("{}")
        write_status(tmp_path / "own", FAILED, "")
    write_status(tmp_path / "own", FAILED, "")
    check_folder(tmp_path / "own", [])
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_not_replaced(tmp_path: Path) -> None:
    with working_in(tmp_path / "run", "compressor run"):
        pass
    with pytest.raises(OutputError, match="already holds a finished run or forecast; choose another"):
        check_folder(tmp_path / "run", [])


def test_a_failed_run_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    left = ["model", "model.gguf", "plan.json", "rows.safetensors", "report.html", "report.json", "scores.jsonl"]
    with pytest.raises(ValueError), working_in(tmp_path / "run", "compressor run"):
        for name in left[1:]:
            (tmp_path / "run" / name).touch()
        for name in ("model", ".model.partial", ".model.old"):
            (tmp_path / "run" / name / "inside").mkdir(parents=True)
        (tmp_path / "run" / ".plan.json.12.tmp").touch()
        (tmp_path / "run" / "note of the user.txt").touch()
        raise ValueError
    assert read_status(tmp_path / "run")["status"] == FAILED
    with working_in(tmp_path / "run", "compressor run"):
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [MARK, "note of the user.txt", STATUS]


@pytest.mark.parametrize(("error", "status"), [(ValueError, FAILED), (KeyboardInterrupt, INTERRUPTED), (None, DONE)])
def test_the_status_says_how_it_ended(error: type[BaseException] | None, status: str, tmp_path: Path) -> None:
    try:
        with working_in(tmp_path / "run", "compressor run seed=1"):
            assert read_status(tmp_path / "run")["status"] == RUNNING
            if error is not None:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    found = read_status(tmp_path / "run")
    assert (found["status"], found["pid"], found["command"]) == (status, os.getpid(), "compressor run seed=1")


def test_signs_of_life_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "HEARTBEAT", 0.01)
    with heartbeat(tmp_path, "compressor run"):
        first = read_status(tmp_path)["heartbeat"]
        until = time.monotonic() + 10
        while read_status(tmp_path)["heartbeat"] == first:
            assert time.monotonic() < until


HOLD = """
import sys, time
from pathlib import Path
from compressor.artifacts.run_folder import held_folder
with held_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"is in use by process {other.pid} on .*; wait for it or choose"):
            with held_folder(tmp_path):
                pass
    finally:
        other.kill()
        other.communicate()
    with held_folder(tmp_path), held_folder(tmp_path):  # this process may enter twice
        assert json.loads((tmp_path / MARK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(("age", "is_taken"), [(5, False), (3600, True)])
def test_a_process_on_another_machine_is_dead_when_it_is_silent(age: float, is_taken: bool, tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    (tmp_path / STATUS).write_text(json.dumps({"status": RUNNING, "heartbeat": time.time() - age}))
    if is_taken:
        with held_folder(tmp_path):
            return
    with pytest.raises(OutputError, match="is in use by process 1 on elsewhere"), held_folder(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 100000, b'{"status": 5}'])
def test_a_status_that_cannot_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STATUS).write_bytes(content)
    assert read_status(tmp_path).get("status") != DONE
    (tmp_path / MARK).write_bytes(content)
    with held_folder(tmp_path):
        pass


def test_only_marked_folders_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    with pytest.raises(AssertionError):
        clear_results(tmp_path)
    assert (tmp_path / "plan.json").exists()


def test_another_command_does_not_destroy_a_run_that_can_go_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError), working_in(tmp_path / "own", "compressor run"):
        (tmp_path / "own" / "state" / "answers").mkdir(parents=True)
        (tmp_path / "own" / "scores.jsonl").write_text("one\n")
        raise ValueError
    with (
        pytest.raises(OutputError, match=r"holds an interrupted run; go on with it by compressor resume .*own"),
        working_in(tmp_path / "own", "compressor forecast"),
    ):
        pytest.fail("the folder was taken")
    assert (tmp_path / "own" / "scores.jsonl").read_text() == "one\n"
