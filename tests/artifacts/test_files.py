"""Files: whole or absent, strict JSON, one line for every failure."""

import enum
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressor.artifacts.files import (
    append_json_line,
    make_folder,
    read_json,
    replaced_file,
    replaced_folder,
    to_strict,
    write_json,
    write_text,
)
from compressor.errors import OutputError
from tests.support.interrupted_writes import KILLED, NEVER
from tests.support.slow import rarely
from tests.support.warm_processes import ROOT, run_project


class Color(enum.Enum):
    RED = "red"


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "ä → b\nc")
    assert path.read_bytes() == "ä → b\nc".encode()
    write_text(path, "again")
    assert path.read_text() == "again"
    assert [child.name for child in path.parent.iterdir()] == ["a.txt"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "written", "x")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"old": 1})

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match=r"^cannot write .*report.json: No space left on device; free some space or"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["report.json"]


def test_a_limit_for_the_size_of_files_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"File too large; raise the limit for the size of a file \(ulimit -f\)"):
        write_json(tmp_path / "report.json", {})


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["report.json"]


def test_a_reader_never_sees_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "a.json", []
    write_json(path, ["old"])
    sync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(json.loads(path.read_text()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_json(path, ["new"] * 10_000)
    assert seen == [["old"]]


def fail_in_body(monkeypatch: pytest.MonkeyPatch) -> None:
    raise KeyboardInterrupt


def fail_at_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse)


def fail_at_first_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", refuse)


def fail_at_last_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """The renaming of the new file or folder alone; that of the old folder, and its return, work."""
    replace = os.replace

    def refuse_new(source: Path, target: Path) -> None:
        if source.suffix in (".tmp", ".partial"):
            refuse()
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)


def refuse(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


FAILURES = [fail_in_body, fail_at_fsync, fail_at_first_rename, fail_at_last_rename]


def list_tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fail", FAILURES)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_write_that_is_interrupted_leaves_the_old_content_whole(
    fail: Any,  # noqa: ANN401 - one of FAILURES
    is_there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_there:
        (tmp_path / "file").write_text("old")
        (tmp_path / "folder" / "inner").mkdir(parents=True)
        (tmp_path / "folder" / "inner" / "a").write_text("old")
    before = list_tree(tmp_path)
    with monkeypatch.context() as patch, pytest.raises((OutputError, KeyboardInterrupt)):
        with replaced_file(tmp_path / "file") as temporary:
            temporary.write_text("new, and interrupted")
            fail(patch)
    with monkeypatch.context() as patch, pytest.raises((OutputError, KeyboardInterrupt)):
        with replaced_folder(tmp_path / "folder") as partial:
            (partial / "b").write_text("new, and interrupted")
            fail(patch)
    assert list_tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == ({"file", "folder"} if is_there else set())


def test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    for names in (["a", "b"], ["b"]):
        with replaced_folder(folder) as partial:
            for name in names:
                (partial / name).write_text(name)
        assert {path.name for path in folder.iterdir()} == {*names}
        assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_not_in_the_way(tmp_path: Path) -> None:
    for name in (".model.partial", ".model.old", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    with replaced_folder(tmp_path / "model") as partial:
        (partial / "b").write_text("new")
    assert list_tree(tmp_path) == {"model/b": "new"}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_of_safetensors_have_the_permissions_of_any_other(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with replaced_file(tmp_path / "file") as temporary:
            save_file({"a": np.zeros(3)}, temporary)
        with replaced_folder(tmp_path / "folder") as partial:
            save_file({"a": np.zeros(3)}, partial / "a.safetensors")
    finally:
        os.umask(before)
    written = (tmp_path / "file", tmp_path / "folder" / "a.safetensors")
    assert [path.stat().st_mode & 0o777 for path in written] == [0o666 & ~umask] * 2
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_failure_of_safetensors_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^cannot write .*file: .*; free some space or choose") as caught:
        with replaced_file(tmp_path / "file") as temporary:
            save_file({"a": np.zeros(3)}, temporary.parent / "absent" / "file")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_json_is_strict_and_keeps_its_order(tmp_path: Path) -> None:
    data = {
        "z": math.nan,
        "a": [math.inf, -math.inf, 1.5, True, None],
        "array": np.float32(0.5),
        "count": np.int64(3),
        "bad": np.float64("nan"),
        "mode": Color.RED,
        "path": Path("a/b"),
        "shape": (2, 3),
        1: "one",
        "ä": "→",
    }
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text and "→" in text and text.endswith("}\n")
    found = json.loads(text)
    assert list(found) == ["z", "a", "array", "count", "bad", "mode", "path", "shape", "1", "ä"]
    assert found["z"] is None and found["bad"] is None and found["a"] == [None, None, 1.5, True, None]
    assert (found["array"], found["count"], found["mode"]) == (0.5, 3, "red")
    assert (found["path"], found["shape"]) == (os.path.join("a", "b"), [2, 3])


def test_a_name_that_is_not_text_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"model-\xff")
    write_json(tmp_path / "a.json", [name])
    append_json_line(tmp_path / "a.jsonl", [name])
    assert read_json(tmp_path / "a.json") == [name]
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8")) == [name]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.zeros(3)])
def test_what_json_cannot_say_is_refused_before_writing(value: Any, tmp_path: Path) -> None:  # noqa: ANN401
    with pytest.raises(OutputError, match=r"^a \w+ cannot be written as JSON, got .*; give numbers, strings") as caught:
        write_json(tmp_path / "a.json", {"x": [value]})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_strict_data_is_a_copy() -> None:
    data = {"a": [1, 2]}
    copy = to_strict(data)
    copy["a"].append(3)
    assert data == {"a": [1, 2]}


def test_lines_are_there_at_once_and_apart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.jsonl"
    for index in range(3):
        append_json_line(path, {"round": index, "score": math.nan})
        assert path.read_text().count("\n") == index + 1
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_line_is_a_line_to_every_reader(tmp_path: Path) -> None:
    append_json_line(tmp_path / "a.jsonl", {"text": "one\u2028two\nthree ä"})
    (line,) = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"text": "one\u2028two\nthree ä"}


def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"round": 0}\n{"rou')
    append_json_line(path, {"round": 1})
    assert path.read_text() == '{"round": 0}\n{"rou\n{"round": 1}\n'


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b", "choose another")
    assert (tmp_path / "a" / "b").is_dir() and list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        make_folder(tmp_path / "file" / "run", "choose another")
    message = str(caught.value)
    assert message.startswith(f"cannot write to the folder {tmp_path / 'file' / 'run'}: ")
    assert message.endswith("; choose another") and "\n" not in message


def test_files_in_a_folder_that_is_none_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (lambda path: write_text(path, "x"), lambda path: append_json_line(path, 1), read_json):
        with pytest.raises(OutputError) as caught:
            write(tmp_path / "file" / "a.json")
        assert "\n" not in str(caught.value) and "a.json" in str(caught.value)


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^cannot read .*: No such file or directory; is this the folder of"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": \xff}')
    with pytest.raises(OutputError, match=r"^.*a.json is not valid JSON \(.*\); it was changed or cut off, run again$"):
        read_json(tmp_path / "a.json")


REPLACING = """
import sys
from pathlib import Path
from compressor.artifacts.files import replaced_folder
from tests.support.interrupted_writes import kill_at
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
count = kill_at(moment)
with replaced_folder(folder) as partial:
    (partial / "inner").mkdir()
    (partial / "inner" / "a").write_text("new")
    (partial / "b").write_text("new")
print(count())
"""
OLD, NEW = {"inner/a": "old", "c": "old"}, {"inner/a": "new", "b": "new"}


def replace_until(folder: Path, moment: int) -> tuple[int, str]:
    """Replace the folder in a process that is killed at a moment; the exit status and the output."""
    done = run_project([sys.executable, "-c", REPLACING, str(folder), str(moment)], ROOT)
    assert done.returncode in (0, KILLED), done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("first", [0, *rarely([1])])
def test_a_folder_that_is_replaced_is_never_lost(first: int, tmp_path: Path) -> None:
    """The new one is complete before the old one is renamed, and that is removed last."""

    def make(folder: Path) -> Path:
        (folder / "inner").mkdir(parents=True)
        for name, text in OLD.items():
            (folder / name).write_text(text)
        return folder

    status, output = replace_until(make(tmp_path / "whole" / "model"), NEVER)
    assert status == 0 and list_tree(tmp_path / "whole" / "model") == NEW
    moments, found = int(output), []
    for moment in range(first, moments, 2):
        folder = make(tmp_path / str(moment) / "model")
        assert replace_until(folder, moment)[0] == KILLED
        place = folder if folder.exists() else folder.with_name(".model.old")
        content = list_tree(place)
        assert content in (OLD, NEW), moment
        found.append((place.name, content == NEW))
        if place != folder:
            assert list_tree(folder.with_name(".model.partial")) == NEW
        with replaced_folder(folder) as partial:
            (partial / "a").write_text("newest")
        assert list_tree(folder) == {"a": "newest"} and [path.name for path in folder.parent.iterdir()] == ["model"], (
            moment
        )
    steps = list(dict.fromkeys(found))
    assert steps == [("model", False), (".model.old", False), ("model", True)]
