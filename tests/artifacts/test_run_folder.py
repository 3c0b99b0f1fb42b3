"""Results go only into folders that are ours, one process at a time, and a folder says what its run is doing."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.artifacts import folder_check, run_folder
from compressor.artifacts.answers import Answers
from compressor.artifacts.folder_check import check_content, check_folder
from compressor.artifacts.folder_lock import held_folder
from compressor.artifacts.run_files import FILES, MARK, STATUS
from compressor.artifacts.run_folder import (
    claim_files,
    clear_results,
    heartbeat,
    require_own,
    working_in,
    write_status,
)
from compressor.artifacts.run_status import DONE, FAILED, INTERRUPTED, RUNNING, read_status
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


@pytest.mark.parametrize("place", ["model/inner", "state", "0/model/deep/x", "link/x"])
def test_a_folder_in_that_of_another_run_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError), working_in(tmp_path / "run", "compressor run"):
        (tmp_path / "run" / "model").mkdir()
        raise ValueError
    (tmp_path / "run" / "link").symlink_to(tmp_path / "run" / "model")
    for multirun, key in ((False, "run"), (True, "sweep")):
        with pytest.raises(
            OutputError, match=rf"lies in .*/run, which is the folder of another run; .* hydra\.{key}\.dir"
        ):
            check_folder(tmp_path / "run" / place, [], multirun)


def test_a_run_and_a_multirun_do_not_share_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError), working_in(tmp_path / "one", "compressor run"):
        raise ValueError
    with held_folder(tmp_path / "many"):
        (tmp_path / "many" / "0").mkdir()
        check_folder(tmp_path / "one", [])
        check_folder(tmp_path / "many", [], multirun=True)
        with pytest.raises(OutputError, match=r"one is the folder of a single run, .* choose another by hydra\.sweep"):
            check_folder(tmp_path / "one", [], multirun=True)
        with pytest.raises(OutputError, match=r"many is the folder of a multirun, .* choose another by hydra\.run\.d"):
            check_folder(tmp_path / "many", [])


@pytest.mark.parametrize("name", ["model/notes.txt", "model-unverified/deep/notes.txt", "state/notes.txt"])
@pytest.mark.parametrize("job", ["", "3"])
def test_files_of_the_user_are_not_cleared(name: str, job: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError), held_folder(tmp_path / "run"), working_in(tmp_path / "run" / job, "compressor run"):
        raise ValueError
    mine = tmp_path / "run" / job / name
    mine.parent.mkdir(parents=True)
    mine.write_text("keep")
    with pytest.raises(OutputError, match=rf"has files that no command of compressor wrote: {name}; move them, or"):
        check_folder(tmp_path / "run", [], multirun=bool(job))
    assert mine.read_text() == "keep"


@pytest.mark.parametrize("status", [FAILED, DONE])
def test_nothing_is_written_through_a_link(status: str, tmp_path: Path) -> None:
    """Also not in a job of a multirun that is done."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with held_folder(tmp_path / "many"), working_in(tmp_path / "many" / "0", "compressor run"):
        (tmp_path / "many" / "0" / ".hydra").symlink_to(elsewhere)
    write_status(tmp_path / "many" / "0", status, "")
    with pytest.raises(
        OutputError, match=r"0/\.hydra is a link, and a run writes nothing through a link; remove it, o"
    ):
        check_folder(tmp_path / "many", [], multirun=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / MARK).touch()
    (tmp_path / "new" / "compressor.log").symlink_to(elsewhere / "log")
    with pytest.raises(OutputError, match=r"compressor\.log is a link"):
        check_folder(tmp_path / "new", [])


def test_a_folder_in_which_nothing_is_done_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    for place in ("new", "before/deep/new"):
        with held_folder(tmp_path / place):
            (tmp_path / place / ".hydra").mkdir()
            (tmp_path / place / ".hydra" / "arguments.json").touch()
        assert [path.name for path in tmp_path.rglob("*")] == ["before"]
    with held_folder(tmp_path / "before"):  # it was there, and empty
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["before"]
    with held_folder(tmp_path / "before" / "used"):
        (tmp_path / "before" / "used" / "compressor.log").touch()
    with held_folder(tmp_path / "before" / "used"):
        pass
    assert (tmp_path / "before" / "used" / MARK).is_file()


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
    write_status(tmp_path / "own", FAILED, "", ["plan.json"])
    check_folder(tmp_path / "own", [])
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_not_replaced(tmp_path: Path) -> None:
    with working_in(tmp_path / "run", "compressor run"):
        pass
    with pytest.raises(OutputError, match="already holds a finished run or forecast; choose another"):
        check_folder(tmp_path / "run", [])


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"status": "odd"}'])
def test_results_without_a_status_are_not_replaced(content: bytes | None, tmp_path: Path) -> None:
    """A run may have finished here; one that can go on makes its results again."""
    with pytest.raises(ValueError), working_in(tmp_path / "run", "compressor run"):
        raise ValueError
    (tmp_path / "run" / STATUS).unlink() if content is None else (tmp_path / "run" / STATUS).write_bytes(content)
    check_folder(tmp_path / "run", [])  # there is nothing to be lost
    (tmp_path / "run" / "report.json").write_text("{}")
    with pytest.raises(OutputError, match=r"holds results \(report\.json\), and its status\.json does not say"):
        check_folder(tmp_path / "run", [])
    with pytest.raises(OutputError, match="does not say"), working_in(tmp_path / "run", "compressor run"):
        pass
    assert (tmp_path / "run" / "report.json").read_text() == "{}"
    (tmp_path / "run" / "state").mkdir()
    check_folder(tmp_path / "run", [])


def test_a_file_that_the_command_does_not_write_is_not_cleared(tmp_path: Path) -> None:
    with pytest.raises(ValueError), working_in(tmp_path, "compressor run"):
        claim_files(tmp_path, ["report.json", "sequences.jsonl"])
        assert read_status(tmp_path)["files"] == ["report.json", "sequences.jsonl"]  # before they are written
        (tmp_path / "report.json").touch()
        raise ValueError
    assert read_status(tmp_path)["files"] == ["report.json"]  # the other one was not written
    for name in (*FILES[1:], *FILES[:1]):
        if name != "report.json":
            (tmp_path / name).write_text("mine")
            with pytest.raises(OutputError, match=f"has files that no command of compressor wrote: {name}; move them"):
                check_folder(tmp_path, [])
            (tmp_path / name).unlink()
    with working_in(tmp_path, "compressor run"):
        assert not (tmp_path / "report.json").exists()


def test_a_file_that_appears_while_a_command_works_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"scores\.jsonl was put there by somebody else while the run was working; m"):
        with working_in(tmp_path, "compressor run"):
            (tmp_path / "scores.jsonl").write_text("mine")
            claim_files(tmp_path, ["scores.jsonl"])
    assert (tmp_path / "scores.jsonl").read_text() == "mine" and read_status(tmp_path)["files"] == []


def test_nothing_is_written_to_a_folder_that_took_the_place(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "moved"
    with pytest.raises(OutputError, match="run was removed, renamed or replaced while the run was working in it"):
        with working_in(folder, "compressor run"):
            answers = Answers(folder / "state" / "answers")
            answers.add("key", {"a": np.zeros(1)})
            folder.rename(other)
            folder.mkdir()
            for write in (lambda: claim_files(folder, ["scores.jsonl"]), answers.save):
                with pytest.raises(OutputError, match="was removed, renamed or replaced"):
                    write()
    assert not list(folder.iterdir())


def test_a_file_in_the_folder_of_the_model_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"model/sub/thesis\.txt was put there by somebody else while the run was"):
        with working_in(tmp_path, "compressor run"):
            require_own(tmp_path)
            (tmp_path / "model" / "sub").mkdir(parents=True)
            (tmp_path / "model" / "sub" / "thesis.txt").write_text("mine")
            require_own(tmp_path)


def test_a_sign_of_life_names_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "HEARTBEAT", 0.001)
    with working_in(tmp_path, "compressor run"):
        for number, name in enumerate(FILES, 1):
            claim_files(tmp_path, [name])
            time.sleep(0.005)
            assert read_status(tmp_path)["files"] == [*FILES[:number]]


def test_a_full_disk_has_room_for_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is then that of the file itself."""

    def lacks_room(path: Path, text: str) -> None:
        raise OutputError("no room")

    with working_in(tmp_path, "compressor run"), monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_text", lacks_room)
        for name in FILES:
            claim_files(tmp_path, [name])
        assert read_status(tmp_path)["files"] == [*FILES]


@pytest.mark.parametrize("moves", [True, False])
def test_a_folder_that_is_gone_is_never_done(moves: bool, tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="was removed, renamed or replaced while the run was working in it"),
        working_in(tmp_path / "run", "compressor run"),
    ):
        (tmp_path / "run").rename(tmp_path / "moved") if moves else shutil.rmtree(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_does_not_leave_a_run_that_seems_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks_room(path: Path, text: str) -> None:
        raise OutputError("no room")

    with pytest.raises(ValueError), working_in(tmp_path, "compressor run"):
        monkeypatch.setattr(run_folder, "write_text", lacks_room)
        raise ValueError
    assert read_status(tmp_path)["status"] == FAILED


def test_what_is_written_in_place_is_no_hard_link(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(ValueError), working_in(first, "compressor run"):
        (first / ".hydra").mkdir()
        (first / ".hydra" / "config.yaml").write_text("first")
        raise ValueError
    shutil.copytree(first, second, copy_function=os.link)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    with working_in(second, "compressor run"):
        (second / ".hydra" / "config.yaml").write_text("second")
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


def test_a_file_or_an_impossible_name_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place, said in (
        (tmp_path / "notes.txt", "cannot"),
        (tmp_path / "a\udce9", "is no name that can be written"),
        (tmp_path / "a\0b", "is no name that can be written"),
    ):
        with pytest.raises(OutputError, match=said):
            check_folder(place, [])
            with held_folder(place):
                pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "found", "wanted"),
    [
        *((name, "file", "folder") for name in (".hydra", "state", "model", "model-unverified")),
        *((name, "folder", "file") for name in ("report.json", "compressor.log", "status.json", ".model-files.jsonl")),
    ],
)
def test_a_file_in_place_of_a_folder_is_refused_before_anything_starts(
    name: str, found: str, wanted: str, tmp_path: Path
) -> None:
    (tmp_path / MARK).touch()
    path = tmp_path / name
    if name != STATUS:
        write_status(tmp_path, FAILED, "")
    path.mkdir() if found == "folder" else path.write_text("mine")
    said = f"{path} is a {found}, and a run writes a {wanted} of this name; move it away, or choose another by hydra."
    with pytest.raises(OutputError, match=re.escape(f"{said}run.dir=DIR")):
        check_folder(tmp_path, [])
    many = tmp_path.parent / f"{tmp_path.name} of many"
    shutil.copytree(tmp_path, many / "3")
    (many / MARK).touch()
    with pytest.raises(OutputError, match=rf"/3/{re.escape(name)} is a {found}, .* by hydra\.sweep\.dir=DIR$"):
        check_folder(many, [], multirun=True)
    with pytest.raises(OutputError, match=r"by hydra\.sweep\.dir=DIR$"):
        check_content(many / "3")  # as its job does


@pytest.mark.parametrize(
    "name",
    ["compressor.log", "status.json", "report.json", "scores.jsonl", "model.gguf", ".model-files.jsonl",
     "multirun.yaml", "comparison.json", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml",
     ".hydra/arguments.json", "state/run.json", "state/answers/000000.safetensors", "model", "state", ".hydra", "7"],
)  # fmt: skip
@pytest.mark.parametrize("status", [FAILED, DONE])
def test_a_pipe_in_place_of_a_file_is_refused(name: str, status: str, tmp_path: Path) -> None:
    """Also in a job that is done: opening a pipe never ends."""
    for folder in (tmp_path, tmp_path / "0"):
        folder.mkdir(exist_ok=True)
        (folder / MARK).touch()
    write_status(tmp_path / "0", status, "")
    path = tmp_path / "0" / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    wanted = "folder" if name in ("model", "state", ".hydra", "7") else "file"
    said = f"{path} is a pipe, and a run writes a {wanted} of this name; move it away, or choose another by hydra.sweep"
    with pytest.raises(OutputError, match=re.escape(said)):
        check_folder(tmp_path, [], multirun=True)


def test_a_socket_in_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    Path(MARK).touch()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("compressor.log")
        with pytest.raises(OutputError, match=r"compressor\.log is a socket, and a run writes a file of this name"):
            check_folder(tmp_path, [])


def test_a_status_that_is_shared_is_not_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks_room(path: Path, text: str) -> None:
        raise OutputError("no room")

    write_status(tmp_path, INTERRUPTED, "")
    (tmp_path / MARK).touch()
    other = tmp_path.parent / f"{tmp_path.name} of before"
    os.link(tmp_path / STATUS, other)
    before = other.read_bytes()
    monkeypatch.setattr(run_folder, "write_text", lacks_room)
    with pytest.raises(OutputError), working_in(tmp_path, "compressor run"):
        pytest.fail("the disk is full")
    assert other.read_bytes() == before


def test_a_log_of_the_user_makes_a_folder_foreign(tmp_path: Path) -> None:
    (tmp_path / "compressor.log").write_text("mine")
    with pytest.raises(OutputError, match=r"has files that no command of compressor wrote: compressor\.log; choose"):
        check_folder(tmp_path, [])


def test_a_file_in_place_of_a_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARK).touch()
    (tmp_path / "0").mkdir()
    (tmp_path / "1").write_text("mine")
    with pytest.raises(
        OutputError, match=r"/1 is a file, and a run writes a folder of this name; .*hydra\.sweep\.dir="
    ):
        check_folder(tmp_path, [], multirun=True)


def test_advice_for_a_job_is_that_for_its_multirun(tmp_path: Path) -> None:
    (tmp_path / MARK).touch()
    with working_in(tmp_path / "0", "compressor run"):
        pass
    with pytest.raises(
        OutputError, match=r"/0 already holds a finished run .*; choose another by hydra\.sweep\.dir=DIR"
    ):
        check_content(tmp_path / "0")


def test_the_status_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError), working_in(tmp_path, "compressor run"):
        raise ValueError
    times = []

    def count(folder: Path) -> dict[str, Any]:
        times.append(folder)
        return read_status(folder)

    monkeypatch.setattr(folder_check, "read_status", count)
    check_content(tmp_path)
    assert times == [tmp_path]


def test_clearing_keeps_the_status_until_the_next_one(tmp_path: Path) -> None:
    """A process that is killed while it clears leaves a folder that the next one still takes."""
    with pytest.raises(ValueError), working_in(tmp_path, "compressor run"):
        raise ValueError
    clear_results(tmp_path)
    assert read_status(tmp_path)["status"] == FAILED


def test_a_failed_run_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    left = ["model", "model.gguf", "plan.json", "rows.safetensors", "report.html", "report.json", "scores.jsonl"]
    with pytest.raises(ValueError), working_in(tmp_path / "run", "compressor run"):
        claim_files(tmp_path / "run", left[1:])
        for name in left[1:]:
            (tmp_path / "run" / name).touch()
        for name in ("model", ".model.partial", ".model.old"):
            (tmp_path / "run" / name / "inside").mkdir(parents=True)
        (tmp_path / "run" / ".plan.json.12.tmp").touch()
        for name in ("note of the user.txt", ".thesis.old"):
            (tmp_path / "run" / name).touch()
        raise ValueError
    assert read_status(tmp_path / "run")["status"] == FAILED
    with working_in(tmp_path / "run", "compressor run"):
        left = [MARK, ".thesis.old", "note of the user.txt", STATUS]
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == left


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
from compressor.artifacts.folder_lock import held_folder
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
        claim_files(tmp_path / "own", ["scores.jsonl"])
        (tmp_path / "own" / "scores.jsonl").write_text("one\n")
        raise ValueError
    with (
        pytest.raises(OutputError, match=r"holds an interrupted run; go on with it by compressor resume .*own"),
        working_in(tmp_path / "own", "compressor forecast"),
    ):
        pytest.fail("the folder was taken")
    assert (tmp_path / "own" / "scores.jsonl").read_text() == "one\n"
