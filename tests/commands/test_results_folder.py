"""A command writes only into its own folder, and finds there only what belongs to it."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import compressor
from compressor.artifacts.run_status import DONE, FAILED
from compressor.errors import ConfigError, OutputError
from tests.support.command_line import MAIN, call_command
from tests.support.families import save_checkpoint
from tests.support.slow import rarely, rarely_cases
from tests.support.warm_processes import run_project

FEW = (
    "run", "model=hf", "data.prefixes=2", "data.proof_prefixes=2", "data.prefix_tokens=4", "tracking=none",
    "data.continuation_tokens=4", "metric=[fdtm]", "schedule=uniform", "export.verify=false",
)  # fmt: skip
SWEEP = ("schedule.targets=[0.5]", "seed=1,2", "hydra.sweep.dir=sweep", "-m")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("base") / "llama", with_tokenizer=True)


@pytest.fixture(scope="module")
def swept(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a multirun of two jobs in the folder `sweep`."""
    place = tmp_path_factory.mktemp("swept")
    done = call_command(place, *FEW, f"model.path={base}", *SWEEP)
    assert (done.returncode, done.stderr) == (0, "")
    return place


@pytest.fixture
def place(swept: Path, tmp_path: Path) -> Path:
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read_all(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder, with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refuse(place: Path, *arguments: str) -> str:
    """The only line that a command says, which writes nothing."""
    before = read_all(place)
    done = call_command(place, *arguments)
    (said,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert read_all(place) == before
    return said


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (("seed=1,2", "data.prefixes=3"), r"data.prefixes 2 → 3; "),
        (("seed=1,3",), "job 1 seed=2 → seed=3; "),
        *rarely_cases(
            [
                (("seed=3,4",), "job 0 seed=1 → seed=3; "),
                (("seed=1",), "job 0 seed=1 → nothing that varies; "),
                (("data.prefixes=2,3", "seed=1,2"), "job 0 seed=1 → data.prefixes=2 seed=1; "),
                (("seed=1,2", "data.prefixes=3", "data.seed=9"), "data.prefixes 2 → 3 and 1 more; "),
            ]
        ),
    ],
)
def test_the_folder_of_another_multirun_is_refused(
    changed: tuple[str, ...], difference: str, place: Path, base: Path
) -> None:
    arguments = [argument for argument in SWEEP if not argument.startswith("seed")]
    said = refuse(place, *FEW, f"model.path={base}", *arguments[:-1], *changed, "-m")
    assert said.startswith(f"error: sweep holds the jobs of another multirun: {difference}")
    assert said.endswith("; choose another by hydra.sweep.dir=DIR")


def test_the_same_multirun_may_be_written_otherwise_and_go_further(place: Path, base: Path) -> None:
    """Also after a job has failed, and with more values of the key that varies most slowly."""
    (place / "sweep" / "1" / "status.json").write_text(json.dumps({"status": FAILED}))
    line = ("hydra.sweep.dir=./sweep", "seed=range(1,4)", "tracking.backend=none", "schedule.targets=[0.50]", "-m")
    done = call_command(place, *FEW, f"model.path={base}", *line)
    assert (done.returncode, done.stderr) == (0, "")
    assert "job 0: was done before" in done.stdout and "job 1: was done before" not in done.stdout
    rows = json.loads((place / "sweep" / "comparison.json").read_text())
    assert [(row["overrides"], row["status"]) for row in rows] == [([f"seed={seed}"], DONE) for seed in (1, 2, 3)]
    said = refuse(place, *FEW, f"model.path={base}", *SWEEP)
    assert "job 2 seed=3 → none" in said


@pytest.mark.parametrize(
    "record", [None, '{"jobs": {"config": 1, "values": 2, "sweeper": 3}}', *rarely(["{}", '{"jobs": 1}'])]
)
def test_jobs_of_an_unknown_multirun_are_not_replaced(record: str | None, place: Path, base: Path) -> None:
    file = place / "sweep" / ".hydra" / "arguments.json"
    file.unlink()
    if record is not None:
        file.write_text(record)
    said = refuse(place, *FEW, f"model.path={base}", *SWEEP)
    assert said.startswith("error: sweep holds jobs of a multirun, and .hydra/arguments.json in it does not say of whi")


@pytest.mark.parametrize("name", ["2", *rarely(["99999999999999999999"])])
def test_a_job_that_is_not_asked_for_is_refused(name: str, place: Path, base: Path) -> None:
    (place / "sweep" / name).mkdir()
    said = refuse(place, *FEW, f"model.path={base}", *SWEEP)
    assert said.startswith(f"error: sweep holds the job {name}, and this multirun has only 2, from 0 on; choose")


def test_a_run_in_the_folder_of_another_is_refused(place: Path, base: Path) -> None:
    for folder, said in (
        ("sweep", "sweep is the folder of a multirun"),
        ("sweep/7", "lies in"),
        ("sweep/0/model/inner", "lies in"),
    ):
        assert said in refuse(place, *FEW, f"model.path={base}", f"hydra.run.dir={folder}")
        with pytest.raises(OutputError, match=said):
            compressor.run({"model.path": str(base)}, model="hf", folder=place / folder)


@pytest.mark.slow
def test_a_resumed_multirun_names_its_folder_once(place: Path) -> None:
    status = place / "sweep" / "1" / "status.json"
    status.write_text(json.dumps({"status": FAILED}))
    for _ in range(2):
        assert call_command(place, "resume", "sweep").returncode == 0
        (place / "sweep" / "comparison.json").unlink()
    assert json.loads(status.read_text())["command"].count("hydra.sweep.dir") == 1


@pytest.mark.parametrize(
    "line",
    [
        ("hydra.output_subdir=../../keep",),
        ("hydra.job.name=../../keep/x",),
        ("+hydra.job_logging.handlers.file.filename=keep/x.log",),
        ("+hydra.hydra_logging={version: 1, handlers: {x: {class: logging.FileHandler, filename: keep/x.log}}}",),
        ("hydra.sweep.subdir=../keep", "-m"),
        *rarely(
            [
                ("hydra.output_subdir=.hydra",),
                ("hydra.output_subdir=model",),
                ("hydra.job.name=${model.name}",),
                ("hydra.job.chdir=true",),
                ("+hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/report.json",),
                ("+hydra.job_logging.handlers.more={class: logging.FileHandler, filename: keep/x.log}",),
                ("hydra.sweep.subdir=${hydra.job.override_dirname}", "-m"),
            ]
        ),
    ],
)
def test_hydra_writes_nowhere_else(line: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml", "x.log"):
        (tmp_path / "keep" / name).write_text("mine")
    said = refuse(tmp_path, "run", "hydra.run.dir=out/run", "hydra.sweep.dir=out/sweep", *line)
    key = line[0].partition("=")[0].removeprefix("+")
    assert said.startswith(f"error: `{key}") and said.endswith("leave it out")
    assert " cannot be changed, got " in said or " must be a group of options, got " in said


def test_another_log_of_hydra_is_refused_if_it_is_a_file(tmp_path: Path) -> None:
    said = refuse(tmp_path, "run", "hydra/job_logging=default", "hydra.run.dir=out")
    assert "`hydra.job_logging.handlers.file.filename` cannot be changed, got '${hydra.runtime.output_dir}" in said


@pytest.mark.parametrize(
    "line",
    [("hydra.run.dir=",), ("hydra.sweep.dir=", "-m"), *rarely([("hydra.run.dir=' '",), ("hydra.run.dir=null",)])],
)
def test_an_empty_name_of_the_folder_is_refused(line: tuple[str, ...], tmp_path: Path) -> None:
    """It is not the working directory."""
    said = refuse(tmp_path, "run", "schedule=uniform", *line)
    key = line[0].partition("=")[0]
    assert said.startswith(f"error: `{key}` must be ") and said.endswith("leave it out"), said


def test_an_empty_name_of_the_folder_is_refused_from_python_and_by_resume(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`folder` must be a path, got ''; give one"):
        compressor.run(folder="")
    assert "takes a folder" in refuse(tmp_path, "resume", "")


@pytest.mark.parametrize("name", ["1/.hydra/overrides.yaml", *rarely(["0/compressor.log", "multirun.yaml"])])
def test_a_pipe_in_the_folder_of_a_multirun_is_refused(name: str, place: Path, base: Path) -> None:
    path = place / "sweep" / name
    path.unlink(missing_ok=True)
    (place / "sweep" / "comparison.json").unlink()
    os.mkfifo(path)
    for line in (("resume", "sweep"), (*FEW, f"model.path={base}", *SWEEP)):
        done = call_command(place, *line)
        (said,) = done.stderr.splitlines()
        assert done.returncode == 1 and not (place / "sweep" / "comparison.json").exists()
        assert said.startswith(f"error: {path} is a pipe, and a run writes a file of this name; move it away, or"), said


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_nothing_stays_of_a_folder_in_which_hydra_did_not_start(kind: str, tmp_path: Path) -> None:
    line = ("+hydra.callbacks.x._target_=hydra.nope", f"hydra.{kind}.dir=new/deep/folder")
    said = refuse(tmp_path, "run", *line, *(["-m"] if kind == "sweep" else []))
    assert said.startswith("error: Hydra cannot start with these settings: ")


STOPPED_IN_A_JOB = """
import os, signal, threading, time
from pathlib import Path
from compressor.artifacts.run_status import read_status

def stop_in_a_job():
    until = time.monotonic() + 60
    while read_status(Path("sweep/0")) == {} and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop_in_a_job, daemon=True).start()
"""
"""The process gets a signal when its first job has begun."""


@pytest.mark.parametrize(("given", "used"), [("run", "sweep"), *rarely_cases([("sweep", "run")])])
def test_the_folder_of_the_other_kind_is_said_to_have_no_effect(
    given: str, used: str, base: Path, tmp_path: Path
) -> None:
    line = [f"hydra.{given}.dir=unused", f"hydra.{used}.dir=used", *(["-m"] if used == "sweep" else [])]
    done = call_command(tmp_path, *FEW, f"model.path={base}", "schedule=uniform", *line)
    word = "with" if used == "sweep" else "without"
    assert done.returncode == 0
    assert done.stderr.splitlines() == [f"`hydra.{given}.dir` has no effect {word} -m; use hydra.{used}.dir"]


def test_a_signal_names_the_multirun_and_not_its_job(base: Path, tmp_path: Path) -> None:
    line = (*FEW, f"model.path={base}", "schedule=beam", "schedule.width=8", *SWEEP[1:])
    done = run_project([sys.executable, "-c", f"{STOPPED_IN_A_JOB}{MAIN}", *line], tmp_path)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.endswith(f"go on with: compressor resume {tmp_path / 'sweep'}\n"), done.stderr
