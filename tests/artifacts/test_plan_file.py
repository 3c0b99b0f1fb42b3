"""plan.json: what is written comes back, and whatever else is in the file gives one line."""

import enum
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor.artifacts.plan_file import ROWS_FILE, hash_plan, plan_to_json, read_plan, write_plan
from compressor.contracts import Treatment
from compressor.errors import OutputError, PlanError

names = st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
treatments = st.builds(
    Treatment, names, st.floats(0, 1), st.dictionaries(st.text(), values | st.lists(values, max_size=3), max_size=3)
)
one_file = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@one_file
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), treatments, max_size=4))
def test_what_is_written_is_read(tmp_path: Path, plan: dict[str, Treatment]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_to_json(plan)), encoding="utf-8")
    assert read_plan(path) == plan


def test_options_become_plain() -> None:
    class Kind(enum.Enum):
        row = "by row"

    plan = {"a": Treatment("int8", 0.5, {"kind": Kind.row, "bits": (2, 4)})}
    assert plan_to_json(plan) == {
        "a": {"compressor": "int8", "amount": 0.5, "options": {"kind": "row", "bits": [2, 4]}}
    }


def test_options_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('\ufeff{"a": {"compressor": "magnitude", "amount": 1}}', encoding="utf-8")
    assert read_plan(str(path)) == {"a": Treatment("magnitude", 1.0)}


TREATMENT = '{"a": {"compressor": "int8", "amount": %s}}'
OPTION = '{"a": {"compressor": "int8", "amount": 0.5, "options": %s}}'
WRONG = {
    "": "is not JSON: Expecting value at line 1 column 1; a plan is",
    "{": "is not JSON: Expecting property name enclosed in double quotes at line 1 column 2; a plan is",
    "[]": ": got []; a plan is",
    "[" * 100_000: "is nested too deeply; a plan is",
    '{"a": ' * 100_000: "is nested too deeply; a plan is",
    '{"a": 0.5}': ": component 'a' is 0.5; a plan is",
    '{"a\\nb": null}': r": component 'a\nb' is None; a plan is",
    '{"\\ud800": []}': r": component '\ud800' is []; a plan is",
    '{"a": {"amount": 0.5}}': ": component 'a' lacks `compressor`; a plan is",
    '{"a": {"compressor": "int8"}}': ": component 'a' lacks `amount`; a plan is",
    '{"a": {"compresor": "int8"}}': ": component 'a' has the key 'compresor'; did you mean `compressor`?",
    '{"a": {"compressor": 8, "amount": 0.5}}': ": `compressor` of component 'a' must be a name in lower case, got 8",
    '{"a": {"compressor": "in\\nt", "amount": 0.5}}': r"must be a name in lower case, got 'in\nt'",
    TREATMENT % "1.5": ": `amount` of component 'a' must be a number in [0, 1], got 1.5",
    TREATMENT % "-1": "must be a number in [0, 1], got -1",
    TREATMENT % "true": "must be a number in [0, 1], got True",
    TREATMENT % '"0.5"': "must be a number in [0, 1], got '0.5'",
    TREATMENT % "null": "must be a number in [0, 1], got None",
    TREATMENT % "NaN": ": NaN is not a JSON number; give a finite one",
    TREATMENT % "-Infinity": ": -Infinity is not a JSON number; give a finite one",
    TREATMENT % "1e999": ": '1e999' is too large; give a smaller number",
    TREATMENT % ("9" * 5000): ": Exceeds the limit",
    TREATMENT % ("9" * 4000): "must be a number in [0, 1], got 9999",
    OPTION % "[]": ": `options` of component 'a' must be an object, got []; name the compressor's fields",
    OPTION % '{"x": {}}': ": option 'x' of component 'a' must be a value or a list of values, got {}",
    OPTION % '{"x": [[1]]}': ": option 'x' of component 'a' must be a value or a list of values, got [[1]]",
    '{"a": {}, "a": {}}': ": 'a' is given twice; keep one of them",
    '{"a": {"amount": 0.1, "compressor": "int8", "amount": 0.2}}': ": 'amount' is given twice; keep one of them",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=range(len(WRONG)))
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    line = read_error(path)
    assert message in line and len(line) < 400 + len(str(path))


def read_error(path: Path | str) -> str:
    """The message, which must be one line that any terminal can print."""
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    line = str(caught.value)
    assert line.startswith("plan ") and line.isprintable()
    line.encode("utf-8")
    return line


ROWS = '{"a": {"compressor": "magnitude", "amount": 0.5, "rows": %s}}'
WRONG_ROWS = {
    ROWS
    % "true": ": `rows` of component 'a' must be the name of a file beside the plan, got True; give 'rows.safetensors'",
    ROWS % "null": "must be the name of a file beside the plan, got None",
    ROWS % "[0.5]": "must be the name of a file beside the plan, got [0.5]",
    ROWS % r'"a\u0000b"': r"must be the name of a file beside the plan, got 'a\x00b'",
    ROWS % r'"\ud800"': r"must be the name of a file beside the plan, got '\ud800'",
    ROWS % '""': "must be a file beside the plan, there is no ''; copy it along with the plan",
    ROWS % '"."': "there is no '.'",
    ROWS % '"none"': "there is no 'none'; copy it along with the plan",
    ROWS % f'"{"x" * 5000}"': "there is no 'xxx",
    ROWS % '"/etc/passwd"': "must stay in the folder of the plan, got '/etc/passwd'; put the file beside the plan",
    ROWS % '"../outside"': "must stay in the folder of the plan, got '../outside'",
    ROWS % '"link"': "must stay in the folder of the plan, got 'link'",
    ROWS % '"plan.json"': "must be a safetensors file, cannot read 'plan.json': ",
    ROWS % '"others"': "must be a tensor of that name, 'others' has none; take the file of this plan",
    ROWS % '"float32"': "must be float64 [out], got F32 [2]; give an amount for each row",
    ROWS % '"whole"': "must be float64 [out], got I64 [2]",
    ROWS % '"matrix"': "must be float64 [out], got F64 [2, 1]",
    ROWS % '"scalar"': "must be float64 [out], got F64 []",
    ROWS % '"mean"': ": component 'a': `amount` of magnitude must be the mean 0.25 of its rows, got 0.5; give that",
    ROWS % '"nan"': ": component 'a': `amount` of magnitude must be in [0, 1], got nan",
    ROWS % '"large"': "must be in [0, 1], got 1.5",
}


@pytest.mark.parametrize(("text", "message"), WRONG_ROWS.items(), ids=range(len(WRONG_ROWS)))
def test_rows_that_are_wrong_are_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    half = np.array([0.5, 0.5])
    files = {
        "others": {"b": half},
        "float32": {"a": half.astype(np.float32)},
        "whole": {"a": half.astype(np.int64)},
        "matrix": {"a": half[:, None]},
        "scalar": {"a": np.array(0.5)},
        "mean": {"a": half / 2},
        "nan": {"a": half * np.nan},
        "large": {"a": half + 1},
        "../outside": {"a": half},
    }
    for name, tensors in files.items():
        (folder / name).write_bytes(safetensors.numpy.save(tensors))
    (folder / "link").symlink_to("../outside")
    (folder / "plan.json").write_text(text, encoding="utf-8")
    line = read_error(folder / "plan.json")
    assert message in line and len(line) < 400 + len(str(folder))


rows = st.lists(st.floats(0, 1), min_size=1, max_size=5).map(tuple)
treatments_by_row = st.builds(
    lambda name, rows: Treatment(name, min(1.0, math.fsum(rows) / len(rows)), {}, rows), names, rows
)


@one_file
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), treatments | treatments_by_row, max_size=4))
def test_rows_come_back_to_the_last_bit(tmp_path: Path, plan: dict[str, Treatment]) -> None:
    """Also over an earlier plan in the same folder, whose file of rows may be one of the user: it stays."""
    write_plan(plan, tmp_path / "plan.json")
    found = read_plan(tmp_path / "plan.json")
    assert found == plan
    assert [repr(t.rows) for t in found.values()] == [repr(t.rows) for t in plan.values()]
    has_rows = any(treatment.rows is not None for treatment in plan.values())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"plan.json"} | ({"rows.safetensors"} if has_rows else set()) <= names


def test_rows_are_named_not_repeated(tmp_path: Path) -> None:
    plan = {"a": Treatment("magnitude", 0.25, rows=(0.5, 0.0)), "b": Treatment("magnitude", 0.5)}
    write_plan(plan, str(tmp_path / "plan.json"))
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["a"] == {"compressor": "magnitude", "amount": 0.25, "options": {}, "rows": "rows.safetensors"}
    assert "rows" not in data["b"]
    tensors = safetensors.numpy.load_file(tmp_path / "rows.safetensors")
    assert list(tensors) == ["a"] and tensors["a"].dtype == np.float64 and tensors["a"].tolist() == [0.5, 0.0]
    assert plan_to_json(plan)["a"]["rows"] is True
    # The folder can be moved as a whole, and the file of rows can lie deeper.
    (moved := tmp_path / "moved" / "deeper").mkdir(parents=True)
    (tmp_path / "rows.safetensors").rename(moved / "rows.safetensors")
    data["a"]["rows"] = "deeper/rows.safetensors"
    (moved.parent / "plan.json").write_text(json.dumps(data))
    assert read_plan(moved.parent / "plan.json") == plan


def test_a_plan_never_names_rows_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when the rows are written leaves the earlier plan."""
    write_plan({"a": Treatment("int8", 0.5)}, tmp_path / "plan.json")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match=r"^cannot write .*rows\.safetensors: No space left on device; free"):
        write_plan({"a": Treatment("magnitude", 0.5, rows=(0.5,))}, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == {"a": Treatment("int8", 0.5)}
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_any_depth_of_a_search_is_a_plan(tmp_path: Path) -> None:
    plain = {"compressor": "int8", "amount": 0.5}
    plans = [{"a": {"compressor": "int4", "amount": 0.75, "options": {"group": 32}}}, {"b": plain, "c": plain}]
    curve = [{"components": len(plan), "share": 0.1, "plan": plan} for plan in plans]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"status": "done", "rounds": [{"amount": 0.1}, {"curve": curve}]}))
    assert read_plan(path, 1) == {"a": Treatment("int4", 0.75, {"group": 32})}
    assert {*read_plan(path, 2)} == {"b", "c"}
    with pytest.raises(PlanError, match="it has no plan of 3 components, only from 1 to 2; choose one of these"):
        read_plan(path, 3)


@pytest.mark.parametrize(
    "rounds", [None, [], [1], [{}], [{"curve": 1}], [{"curve": [1]}], [{"curve": [{"components": "x", "plan": 1}]}]]
)
def test_a_report_without_a_search_has_no_depth(tmp_path: Path, rounds: object) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"rounds": rounds}))
    with pytest.raises(PlanError, match=r"it has no curve of a search; give the report\.json of a run with"):
        read_plan(path, 1)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory; give the path of a plan.json" in read_error(tmp_path / "no")
    assert "is a folder and no plan; give the plan.json of a run" in read_error(tmp_path)
    assert "cannot be read: not a valid path" in read_error("a\0b")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is not a text file; a plan is" in read_error(tmp_path / "binary")


json_like = st.recursive(
    values | st.sampled_from([float("nan"), float("inf"), 0.5, "int8"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["compressor", "amount", "options", "rows"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@one_file
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_plan_or_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    check_read(path)


@one_file
@given(st.dictionaries(st.text(max_size=5), json_like, max_size=3) | json_like, st.integers(0, 40))
def test_any_json_whole_or_cut_is_a_plan_or_one_line(tmp_path: Path, data: object, cut: int) -> None:
    text = json.dumps(data)
    path = tmp_path / "plan.json"
    for content in (text, text[: len(text) - cut]):
        path.write_text(content, encoding="utf-8")
        check_read(path)


def check_read(path: Path) -> None:
    try:
        plan = read_plan(path)
    except PlanError as error:
        assert str(error).isprintable()
    else:
        assert all(isinstance(treatment, Treatment) for treatment in plan.values())
        json.dumps(plan_to_json(plan), allow_nan=False)


def test_another_file_of_a_run_is_no_plan_and_the_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    others = [tmp_path / "status.json", tmp_path / "model" / "compression.json", tmp_path / "model" / "config.json"]
    for path in others:
        path.write_text('{"plan": {"a": {"compressor": "magnitude", "amount": 0.5}}}')
    for place, what in ((tmp_path, "a folder"), *((path, "another file of a run") for path in others)):
        with pytest.raises(PlanError, match=f"is {what} and no plan; give the plan.json of a run$"):
            read_plan(place)
    write_plan({"a": Treatment("magnitude", 0.5)}, tmp_path / "plan.json")
    for place in (tmp_path, *others):
        with pytest.raises(PlanError, match=f"no plan; give '.*{tmp_path.name}/plan.json'$"):
            read_plan(place)
    (tmp_path / "status.json").write_bytes((tmp_path / "plan.json").read_bytes())
    assert read_plan(tmp_path / "status.json") == read_plan(tmp_path / "plan.json")  # its name does not matter


def test_the_hash_of_a_plan_is_also_that_of_its_rows(tmp_path: Path) -> None:
    path, found = tmp_path / "plan.json", []
    for rows in (None, (0.5, 0.5), (0.25, 0.75)):
        write_plan({"a": Treatment("magnitude", 0.5, {}, rows)}, path)
        found.append(hash_plan(path))
    assert len({*found}) == 3 and found[-1] == hash_plan(path)
    (tmp_path / ROWS_FILE).unlink()
    assert hash_plan(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    for content in (b"[", b"[1]", b'{"a": {"rows": [3]}, "b": 2, "c": {"rows": "\\u0000"}}'):
        path.write_bytes(content)
        assert hash_plan(path) == hashlib.sha256(content).hexdigest()
