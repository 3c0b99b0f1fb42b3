"""Bad input, by machine: whatever is wrong is one line of a CompressorError, and the input is left as it was.

Few examples run with the other tests; `make nightly` tries thousands.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.artifacts.answers import Answers
from compressor.artifacts.checked_arrays import read_arrays, write_arrays
from compressor.artifacts.folder_check import check_folder
from compressor.artifacts.folder_lock import held_folder
from compressor.artifacts.plan_file import read_plan
from compressor.artifacts.run_files import MARK, STATUS
from compressor.artifacts.run_record import CurvePoint, FinalRecord, MetricRecord, Record, RoundRecord
from compressor.artifacts.run_state import hash_content, list_differences, read_state
from compressor.artifacts.run_status import read_status
from compressor.commands.command_record import COMMAND_FILE, read_arguments
from compressor.commands.config import store_schemas
from compressor.commands.results_place import choose_place
from compressor.contracts import Score
from compressor.errors import CompressorError
from compressor.plugins import installed
from compressor.report.comparison import make_comparison_table, read_jobs
from compressor.report.run_report import read_sequences, write_report
from tests.support.damage import SLOWEST, damaged_texts, odd_command_lines, try_out
from tests.support.slow import rarely

TREATMENT = {"compressor": "int8", "amount": 0.5, "options": {"group": 32}}
PLAN = {"model.layers.0.mlp": TREATMENT, "model.layers.1.mlp": {**TREATMENT, "amount": 1.0}}
STATE = {
    "config": {"seed": 0, "data": {"path": None}},
    "command": "compressor run",
    "tracker_id": "ab",
    "facts": {"a": 1},
}


ARGUMENTS = {"arguments": ["seed=1"], "key": "hydra.run.dir"}


def make_record() -> Record:
    score = Score(16.4, 1.0, 2.0, 3.0, 0.0, 64.0, 15.0, 17.0, 16.4, 16.4, 8)
    curve = [CurvePoint(2, 0.5, "fdtm", 3.0, PLAN)]
    final, metrics = FinalRecord(0.5, 0.5, 16.0, 8.0, 1_500_000, {"fdtm": score}), {"fdtm": MetricRecord("FDT")}
    rounds = [RoundRecord(0.5, 0.5, {"fdtm": score}, 3, 1.0, curve=curve)]
    return Record("done", {"seed": 0}, {}, metrics=metrics, final=final, rounds=rounds)


REPORT = make_record().to_json()
FORECAST = {"curve": [{"amount": 0.5, "plan": PLAN}, {"amount": 0.7, "plan": PLAN}]}


def read_a_plan(path: Path) -> None:
    read_plan(path)


def read_a_report_as_plan(path: Path) -> None:
    read_plan(path, depth=2)


def read_a_forecast_as_plan(path: Path) -> None:
    read_plan(path, amount=0.5)


def compare(path: Path) -> None:
    make_comparison_table(read_jobs(path.parent.parent))


def read_the_state(path: Path) -> None:
    state = read_state(path.parent.parent)
    assert state is not None
    list_differences(state.config, STATE["config"])  # type: ignore[arg-type]


def read_the_state_with_its_checksum(path: Path) -> None:
    """As by somebody who wrote another content and its checksum."""
    try:
        content = json.loads(path.read_bytes())
        path.write_text(json.dumps({"sha256": hash_content(content), "content": content}))
    except (ValueError, RecursionError):
        return
    read_the_state(path)


def read_the_status(path: Path) -> None:
    read_status(path.parent)
    check_folder(path.parent, ())


def hold(path: Path) -> None:
    with held_folder(path.parent):
        pass


READERS: dict[str, tuple[str, object, Callable[[Path], None]]] = {
    "plan": ("plan.json", PLAN, read_a_plan),
    "report with depth": ("report.json", REPORT, read_a_report_as_plan),
    "forecast with amount": ("forecast.json", FORECAST, read_a_forecast_as_plan),
    "comparison": ("0/report.json", REPORT, compare),
    "state": ("state/run.json", {"sha256": hash_content(STATE), "content": STATE}, read_the_state),
    "state with checksum": ("state/run.json", STATE, read_the_state_with_its_checksum),
    "status": (STATUS, {"status": "done", "pid": 1, "host": "elsewhere", "heartbeat": 1.5}, read_the_status),
    "mark": (MARK, {"pid": 1, "host": "elsewhere"}, hold),
    "arguments": (str(COMMAND_FILE), ARGUMENTS, lambda p: read_arguments(p.parents[1])),
    "sequences": ("sequences.jsonl", {"index": 0, "fdtm": 3.0}, lambda p: read_sequences(p.parent)),
}  # fmt: skip
CHANGED = ("state with checksum", "mark")
"""Where the test itself, or the holder of a folder, writes the file."""


@pytest.mark.parametrize("examples", [20, pytest.param(800, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_one_line(reader: str, examples: int, tmp_path: Path) -> None:
    name, data, read = READERS[reader]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 100)
    @given(content=damaged_texts(data))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try_out(lambda: read(path))
        assert reader in CHANGED or path.read_bytes() == content

    check()


@pytest.mark.parametrize("examples", [20, pytest.param(800, marks=pytest.mark.nightly)])
def test_facts_of_arrays_may_be_anything(examples: int, tmp_path: Path) -> None:
    """Blocks of answers and cached files whose checksum is right, but whose facts are not ours."""
    plain = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x), max_leaves=5)
    path = tmp_path / "000000.safetensors"

    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 100)
    @given(facts=plain | st.dictionaries(st.text(), plain), name=st.text(st.characters(codec="utf-8"), max_size=5))
    def check(facts: object, name: str) -> None:
        write_arrays(path, "key", {name: np.zeros(2)}, facts)  # type: ignore[arg-type]
        content = read_arrays(path, "key")
        assert content is None or isinstance(content.facts, dict)
        try_out(Answers(tmp_path).load)

    check()


@pytest.mark.parametrize("examples", [30, *rarely([60]), pytest.param(1500, marks=pytest.mark.nightly)])
def test_command_lines_are_checked_in_one_line(examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugins = installed()
    store_schemas(plugins)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 100)
    @given(line=odd_command_lines())
    def check(line: list[str]) -> None:
        try_out(lambda: choose_place(line, plugins))
        assert os.listdir(tmp_path) == []

    check()


def test_a_pipe_in_place_of_a_file_does_not_wait(tmp_path: Path) -> None:
    for name in ("report.json", STATUS, "plan.json", MARK, "sequences.jsonl"):
        os.mkfifo(tmp_path / name)
    assert read_status(tmp_path) == {} and read_sequences(tmp_path) == {}
    with pytest.raises(CompressorError, match="cannot be read: it is no regular file"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(CompressorError, match="it is no regular file"):
        hold(tmp_path / MARK)


def test_a_mark_that_is_a_link_does_not_empty_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARK).symlink_to(tmp_path / "mine")
    with pytest.raises(CompressorError, match="it is a link; choose another by hydra"):
        hold(tmp_path / "out" / MARK)
    assert (tmp_path / "mine").read_text() == "keep"


def test_aliases_in_hydras_record_do_not_grow(tmp_path: Path) -> None:
    """A list of lists of lists: short to write, endless to print."""
    write_report(make_record(), tmp_path / "0")
    (tmp_path / "0" / ".hydra").mkdir()
    lines = ["- &a0 [x]", *(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("\n".join(lines))
    began = time.monotonic()
    assert read_jobs(tmp_path)[0].overrides == [] and time.monotonic() - began < SLOWEST


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["-m", "seed=range(0,100000000)"], "`seed=range(0,100000000)` makes more than 10000 runs; give fewer values"),
        (["-m", "seed=glob(*)"], "`seed=glob(*)` names no value; give at least one"),
        (["seed=\n"], "cannot read `seed= `: LexerNoViableAltException: seed=; check its quotes and brackets"),
        (["~schedule"], "`schedule` is needed and not given; add schedule=…"),
        (
            ["hydra.run.dir=${x}"],
            "`hydra.run.dir`: Interpolation key 'x' not found; give a folder without ${…}, or escape it by \\${",
        ),
        (
            ["seed=" + "[" * 60],
            f"`seed={'[' * 55}…` has 60 brackets inside one another, at most 50 are read; close them",
        ),
        (["a" * 300 + "=1"], f"unknown key `{'a' * 300}`; compressor --help lists all"),
    ],
)  # fmt: skip
def test_lines_that_took_long_or_were_bugs(line: list[str], message: str) -> None:
    store_schemas(installed())
    with pytest.raises(CompressorError) as caught:
        choose_place(line, installed())
    assert str(caught.value) == message
