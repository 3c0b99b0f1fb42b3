"""The comparison of many runs: a row each, in the order of the jobs, failures included."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from compressor.artifacts.run_record import FinalRecord, MetricRecord, Record
from compressor.contracts import Score
from compressor.errors import OutputError
from compressor.report import write_report
from compressor.report.comparison import Job, make_comparison_table, read_jobs, shorten_settings, write_comparison


def make_run(
    folder: Path,
    mean: float = 16.4,
    overrides: list[str] | None = None,
    command: str = "compressor",
    names: Sequence[str] = ("fdtm",),
) -> None:
    """A finished run in `folder`, with Hydra's record of its overrides where there are some."""
    score = Score(mean, mean, mean, mean, 0.0, 64.0, mean - 1.5, mean + 1.5, mean, mean, 8)
    final = FinalRecord(0.5, 0.5, 16.0, 8.0, 1_500_000, dict.fromkeys(names, score))
    metrics = {"fdtm": MetricRecord("FDT")}
    write_report(Record("done", {}, {}, command=command, metrics=metrics, final=final), folder)
    if overrides is not None:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))


def make_sweep(folder: Path) -> Path:
    """Twelve jobs; one failed, one is missing its report, one has a torn one."""
    for job in range(12):
        make_run(folder / str(job), 10.0 + job, [f"seed={job}", "model=tiny", "metric=[fdtm,kl]"])
    write_report(Record("failed", {}, {}, error="`amount` must be in [0, 1], got 1.5"), folder / "3")
    (folder / "4" / "report.json").unlink()
    (folder / "5" / "report.json").write_text('{"status": "do')
    (folder / "notes").mkdir()
    (folder / "multirun.yaml").touch()
    return folder


def show(jobs: Sequence[Job], width: int = 140) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(make_comparison_table(jobs))
    return capture.get()


def test_rows_are_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    rows = [job.to_json() for job in read_jobs(make_sweep(tmp_path))]
    assert [row["job"] for row in rows] == [str(job) for job in range(12)]
    assert rows[10]["folder"] == str(tmp_path / "10")


def test_a_row_holds_the_result_and_what_differs(tmp_path: Path) -> None:
    row = read_jobs(make_sweep(tmp_path))[10].to_json()
    assert row["overrides"] == ["seed=10"]
    assert (row["status"], row["error"]) == ("done", None)
    assert (row["amount"], row["sparsity"], row["bits_per_weight"]) == (0.5, 0.5, 16.0)
    assert (row["packed_bits_per_weight"], row["bytes"]) == (8.0, 1_500_000)
    assert row["scores"] == {"fdtm": {"mean": 20.0, "low": 18.5, "high": 21.5}}


def test_jobs_that_failed_are_rows_with_one_line(tmp_path: Path) -> None:
    rows = [job.to_json() for job in read_jobs(make_sweep(tmp_path))]
    failed, missing, unreadable = rows[3:6]
    assert (failed["status"], failed["error"]) == ("failed", "`amount` must be in [0, 1], got 1.5")
    assert missing["status"] == "missing" and missing["error"].startswith("left no report.json")
    assert unreadable["status"] == "unreadable" and "is not valid JSON" in unreadable["error"]
    for row in (failed, missing, unreadable):
        assert row["amount"] is None and row["scores"] == {} and "\n" not in row["error"]
        assert row["overrides"] == [f"seed={row['job']}"]


def test_comparison_json_is_the_rows(tmp_path: Path) -> None:
    jobs = write_comparison(make_sweep(tmp_path))
    rows = [job.to_json() for job in jobs]
    assert json.loads((tmp_path / "comparison.json").read_text()) == rows
    assert rows == [job.to_json() for job in read_jobs(tmp_path)]


def test_table_shows_every_job(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in show(read_jobs(make_sweep(tmp_path))).splitlines()]
    assert "run settings removed size FDT" in lines
    assert "10 seed=10 50.0 % 1.5 MB 20.0" in lines and lines.count("±1.5") == 9
    assert "3 seed=3 – – –" in lines and "run 3 failed: `amount` must be in [0, 1], got 1.5" in lines


def test_a_failure_is_one_line_also_where_the_terminal_is_narrow(tmp_path: Path) -> None:
    reason = "`schedule.targets` must be in [0, 1], got 1.5 in a sentence that takes more than\n80 columns; lower it"
    for job in range(2):
        write_report(Record("failed", {}, {}, error=reason), tmp_path / str(job))
    lines = show(read_jobs(tmp_path), 80).splitlines()
    assert [line[:40] for line in lines[-2:]] == [
        f"run {job} failed: `schedule.targets` must be in [0"[:40] for job in "01"
    ]
    assert all(len(line) == 80 and line.endswith("…") for line in lines[-2:])


def test_table_takes_brackets_for_text(tmp_path: Path) -> None:
    make_run(tmp_path / "0", 16.4, ["metric=[red]"])
    make_run(tmp_path / "1", 16.4, ["metric=[fdtm,kl]"])
    text = show(read_jobs(tmp_path))
    assert "metric=[red]" in text and "metric=[fdtm,kl]" in text
    assert "failed" not in text and "missing" not in text


def test_a_metric_that_only_some_have_is_a_dash(tmp_path: Path) -> None:
    make_run(tmp_path / "0", math.nan)
    (tmp_path / "1").mkdir()
    text = show(write_comparison(tmp_path))
    assert "nan" not in text and "–" in text
    number, missing = json.loads((tmp_path / "comparison.json").read_text())
    assert number["scores"]["fdtm"]["mean"] is None and missing["scores"] == {}


def test_without_hydras_record_the_command_tells(tmp_path: Path) -> None:
    make_run(tmp_path / "0", command="compressor run model=tiny 'seed=1'")
    make_run(tmp_path / "1", command="compressor run model=tiny seed=2 --multirun")
    make_run(tmp_path / "2", command="compressor run model=tiny 'seed")
    (tmp_path / "2" / ".hydra").mkdir()
    (tmp_path / "2" / ".hydra" / "overrides.yaml").write_text("{broken: [")
    assert [job.overrides for job in read_jobs(tmp_path)] == [
        ["model=tiny", "seed=1"],
        ["model=tiny", "seed=2"],
        [],
    ]


def test_a_single_job_keeps_all_of_its_settings(tmp_path: Path) -> None:
    make_run(tmp_path / "0", 20.0, ["seed=2"])
    (alone,) = read_jobs(tmp_path)
    assert alone.overrides == ["seed=2"]


def test_no_runs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^no runs in .*; give the folder of several runs, started with -m$"):
        read_jobs(tmp_path)
    with pytest.raises(OutputError, match=r"^.*nowhere is not a folder; give the folder"):
        read_jobs(tmp_path / "nowhere")


def test_table_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    names = ["fdtm", "expected_fdtm", "sdtm", "divergent_perplexity", "perplexity", "kl"]
    for job in range(3):
        make_run(
            tmp_path / str(job), 16.4, [f"schedule.targets=[0.{job}]", f"compressor.int4.group={job}"], names=names
        )
    jobs = read_jobs(tmp_path)
    assert list(jobs[0].to_json()["scores"]) == names
    lines = show(jobs, width=80).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80 and "…" not in "".join(lines)
    text = " ".join(" ".join(lines).split())
    assert "targets=[0.1]" in text and "group=1" in text and "schedule" not in text
    assert "kl" in text and "expected" not in text and text.count("16.4") == text.count("±1.5") == 3 * 4


def test_keys_are_short_only_where_that_is_unique() -> None:
    overrides = ["compressor.int4.group=1", "compressor.int8.group=2", "seed=3", "schedule.targets=[0.1]"]
    assert shorten_settings([overrides]) == ["compressor.int4.group=1\ncompressor.int8.group=2\nseed=3\ntargets=[0.1]"]


def test_a_job_that_failed_now_has_no_numbers_of_before(tmp_path: Path) -> None:
    """What its folder holds is of another job, or of an earlier start."""
    make_sweep(tmp_path)
    (tmp_path / "1" / "status.json").write_text('{"status": "failed"}')
    failures = {"0": "holds another job", "1": "no room", "3": "told in its report", "4": "holds other answers"}
    rows = [job.to_json() for job in write_comparison(tmp_path, failures)]
    assert [(row["status"], row["error"], row["bytes"], row["scores"]) for row in (*rows[:2], rows[4])] == [
        ("refused", "holds another job", None, {}),
        ("failed", "no room", None, {}),
        ("refused", "holds other answers", None, {}),
    ]
    assert rows[3]["error"] == "`amount` must be in [0, 1], got 1.5" and rows[2]["scores"]
    assert rows[0]["overrides"] == ["seed=0"]
    assert "run 0 refused: holds another job" in show(read_jobs(tmp_path, failures))
