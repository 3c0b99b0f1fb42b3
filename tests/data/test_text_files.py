"""Text files: the same rows come out of every type of file, never its syntax, and every mistake is one line."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pytest

from compressor.data import text_files
from compressor.data.text_files import READERS, read_text
from compressor.data.texts import load_text
from compressor.errors import CompressorError, DataError
from compressor.resources import Memory
from compressor.settings import DataSettings

ROWS = ['a fox, "red"', None, "two\nlines", "  ", "", "tab\tand ünïcode"]
TEXT = 'a fox, "red"\ntwo\nlines\ntab\tand ünïcode'


def write_rows(path: Path, kind: str, column: str = "text", packed: bool = False) -> Path:
    """A file of this kind with the rows in one column, and numbers in another."""
    table = [{"id": number, column: row} for number, row in enumerate(ROWS)]
    if kind == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="the optional extra `data` is not installed")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(table), path)
        return path
    if kind == ".json":
        content = json.dumps(table, indent=1)
    elif kind in (".jsonl", ".ndjson"):
        content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in table)
    else:
        made = io.StringIO()
        writer = csv.DictWriter(made, ["id", column], delimiter="\t" if kind == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(table)
        content = made.getvalue()
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", READERS)
def test_every_type_of_file_gives_the_same_text(tmp_path: Path, kind: str, packed: bool) -> None:
    if kind == ".parquet" and packed:
        pytest.skip("Parquet compresses inside, and is refused with .gz")
    path = write_rows(tmp_path / f"rows{kind}{'.gz' if packed else ''}", kind, packed=packed)
    found = read_text(path, key="data.column")
    assert found.content == TEXT
    assert found.notes == (
        f"The text of {path} is its column `text`, one of id, text; `data.column` chooses another.",
        f"3 of 6 rows of {path} are empty and were left out.",
    )


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".parquet"])
def test_a_column_of_numbers_is_no_text(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        DataError,
        match=r"column `id` of .* must hold text, got int in row 1, and there are id, text; call that column `text`$",
    ):
        read_text(write_rows(tmp_path / f"rows{kind}", kind), "id")


@pytest.mark.parametrize("kind", READERS)
def test_a_column_that_is_not_obvious_must_be_chosen(tmp_path: Path, kind: str) -> None:
    path = write_rows(tmp_path / f"rows{kind}", kind, "story")
    with pytest.raises(
        DataError, match=r"has the columns id, story, and one must be the text; choose it by `data\.column`$"
    ):
        read_text(path, key="data.column")
    with pytest.raises(DataError, match=r"has no column `text`, its columns are id, story"):
        read_text(path, "text")
    assert read_text(path, "story").content == TEXT
    assert len(read_text(path, "story").notes) == 1


def test_json_lines_in_a_json_file_are_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"content": "one"}\n\n{"content": "two"}\n')
    assert read_text(path).content == "one\ntwo"


def test_plain_text_stays_as_it_is_whatever_its_extension(tmp_path: Path) -> None:
    for name in ("story", "story.txt", "story.md", "story.PY"):
        (tmp_path / name).write_bytes("\ufeffa,b\n{}".encode())
        assert read_text(tmp_path / name).content == "a,b\n{}"
    (tmp_path / "story.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert read_text(tmp_path / "story.txt.gz").content == "packed"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_line_breaks_end_a_row(mark: str, tmp_path: Path) -> None:
    """Python's `splitlines` knows more: a text would lose its end, or another column would be taken for it."""
    for name, between in (("a.csv", ","), ("a.tsv", "\t"), ("a.jsonl", None)):
        rows = [f"one{mark}two", f"{mark}three"]
        lines = [json.dumps({"text": row, "label": "x"}, ensure_ascii=False) for row in rows]
        if between is not None:
            lines = [between.join(["text", "label"]), *(between.join([row, "x"]) for row in rows)]
        for end in ("\n", "\r\n"):
            (tmp_path / name).write_bytes(end.join(lines).encode())
            text = read_text(tmp_path / name)
            assert text.content == "\n".join(rows) and not any("left out" in note for note in text.notes)


def test_a_csv_of_a_spreadsheet_is_separated_by_semicolons(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id;text\n1;"one, two"\n2;"three; four"\n')
    assert read_text(tmp_path / "a.csv").content == "one, two\nthree; four"


def test_halves_of_characters_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n{"text": "plain"}\n')
    text = read_text(tmp_path / "a.jsonl")
    assert text.content == "half \ufffd\nwhole 😀\nplain"
    assert any("1 rows of" in note and "lone surrogates" in note for note in text.notes)


def test_damaged_parquet_is_one_line_wherever_it_is_damaged(tmp_path: Path) -> None:
    table = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [f"a dog named Tom {number}" for number in range(200)]
    path = tmp_path / "a.parquet"
    parquet.write_table(table.table({"text": rows}), path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    place = content.find(rows[3].encode())
    content[place - 4 : place] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^[^\n]*a\.parquet cannot be read as Parquet \([^\n]+\); write it again$"):
        read_text(path)
    parquet.write_table(table.Table.from_arrays([table.array(rows)] * 2, names=["text", "text"]), path)
    for column in (None, "text"):
        with pytest.raises(DataError, match=r"has 2 columns called `text`; rename all but one of them$"):
            read_text(path, column)


WRONG = {
    "bad.txt": (b"\x81bad", "is not UTF-8 text"),
    "wide.txt": ("wide".encode("utf-16"), "UTF-16"),
    "null.txt": (b"a\0b", "is binary"),
    "blank.txt": (b" \n\n", "is empty"),
    "a.zip": (b"PK", r"is a \.zip file"),
    "a.txt.zst": (b"", r"is a \.zst file"),
    "a.pdf": (b"%PDF", r"is a \.pdf file"),
    "cut.txt.gz": (gzip.compress(b"text" * 99)[:-12], "cannot read text"),
    "no.txt.gz": (b"text", "cannot read text"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": ', r"line 2 cannot be read"),
    "deep.json": (b"[" * 100_000, r"line 1 cannot be read"),
    "list.json": (b'["a", "b"]', "must hold a JSON object for each row"),
    "number.json": (b"3", "must hold a JSON object for each row"),
    "none.json": (b"[]", "has the columns none"),
    "empty.csv": (b"", "is empty"),
    "empty.jsonl": (b"", "is empty"),
    "lines.csv": (b"\n\n", "has the columns none"),
    "lines.jsonl": (b"\n\n", "has the columns none"),
    "quote.csv": (b'text\n"a" b\n', "is not valid CSV"),
    "null.jsonl": (b'{"text": null}\n', "has no text in 1 rows"),
    "chat.jsonl": (b'{"text": [{"role": "user"}]}\n', "must hold text, got list in row 1"),
    "both.jsonl": (b'{"text": "a", "prompt": "b"}\n', "has the columns text, prompt"),
    "bad.parquet": (b"no table", "cannot be read as Parquet"),
    "twice.csv": (b"text,text\na,b\n", "has 2 columns called `text`; rename all but one of them"),
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path := tmp_path / "text.txt")
    with pytest.raises(DataError, match="it is no regular file but a pipe or a device; write it to a file"):
        read_text(path)


@pytest.mark.parametrize("name", ["large.txt", "bomb.txt.gz"])
def test_a_text_for_which_there_is_no_memory_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"word " * 1000
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    monkeypatch.setattr(text_files, "SMALL", 100)
    assert len(read_text(tmp_path / name).content) == len(content)
    monkeypatch.setattr(text_files, "read_host_memory", lambda: Memory(0, 0, 4 * len(content) - 1))
    with pytest.raises(DataError, match="holds more than the 4999 bytes of text for which there is memory"):
        read_text(tmp_path / name)


@pytest.mark.parametrize("name", WRONG)
def test_what_holds_no_text_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = WRONG[name]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="the optional extra `data` is not installed")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        read_text(tmp_path / name)
    assert "\n" not in str(refused.value) and name in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match="cannot read text"):
            read_text(path)


def test_a_column_of_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("once")
    with pytest.raises(CompressorError, match="is plain text without columns"):
        load_text(DataSettings(source="text", path=str(tmp_path / "story.txt"), column="text"))


def test_a_column_of_a_data_set_is_chosen_alike(tmp_path: Path) -> None:
    """The real loader on local files: nothing is downloaded."""
    pytest.importorskip("datasets", reason="the optional extra `data` is not installed")
    write_rows(tmp_path / "train.jsonl", ".jsonl", "story")
    settings = DataSettings(source="hf", name=str(tmp_path), split="train")
    with pytest.raises(DataError, match="has the columns id, story"):
        load_text(settings)
    settings.column = "story"
    loaded = load_text(settings)
    assert loaded is not None and loaded.content == TEXT
    assert loaded.notes == (f"3 of 6 rows of data set `{tmp_path}` are empty and were left out.",)
