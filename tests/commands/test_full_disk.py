"""A disk that is full: noticed before the search, one line if it fills up later, and the next start goes on."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor import export
from compressor.artifacts import answers, folder_lock, run_folder
from compressor.artifacts.files import FullDisk
from compressor.artifacts.run_status import DONE, RUNNING, read_status
from compressor.commands import run as run_command
from compressor.commands.forecast import Forecast
from compressor.commands.log_file import LogFile
from compressor.commands.run import Run
from compressor.data import reference
from compressor.errors import CompressorError, ConfigError, OutputError
from compressor.recovery import training_state
from compressor.search.session import Session
from compressor.settings import ExportSettings, ModelSettings, Settings, TrackingMode, TrackingSettings
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.recovery.finetune import Finetune
from compressor_plugins.schedules.budget.budget import Budget
from compressor_plugins.schedules.fdt_allocation import FdtAllocation
from compressor_plugins.schedules.uniform import Uniform
from tests.support.command_line import MAIN, call_command
from tests.support.families import save_checkpoint
from tests.support.forecasts import make_settings as make_forecast_settings
from tests.support.forecasts import run as make_forecast
from tests.support.runs import make_settings, run
from tests.support.slow import rarely
from tests.support.small_disks import fill, small_disk
from tests.support.warm_processes import run_project

KILOBYTES = 4000
RESULTS = ("plan.json", "sequences.jsonl", "model/model.safetensors", "model/config.json")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", KILOBYTES) as folder:
        yield folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("base") / "model", torch.bfloat16, with_tokenizer=True)


def make(base: Path, **export_settings: Any) -> Settings:  # noqa: ANN401 - fields of ExportSettings
    settings = make_settings(
        FdtAllocation([0.2, 0.4]),
        model=ModelSettings(path=str(base)),
        export=ExportSettings(verify=False, **export_settings),
    )
    settings.metric = {"fdtm": settings.metric["fdtm"]}
    return settings


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, make(base))
    return folder


def fill_before(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, disk: Path, left: int) -> None:
    """Fill the disk when this function is called, before it does its work."""
    real = getattr(owner, name)

    def work(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever the function takes
        fill(disk, left)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, work)


MOMENTS: dict[str, tuple[object, str, int, str]] = {
    "scores of the search": (Session, "run", 0, r"cannot add to .*scores\.jsonl"),
    "state": (answers, "write_arrays", 0, r"cannot write .*state/answers/.*\.safetensors"),
    "scores of the proof": (Run, "prove", 0, r"cannot add to .*sequences\.jsonl"),
    "plan": (Run, "finish", 0, r"cannot write .*plan\.json"),
    "model": (export, "save", 0, r"cannot write .*/model"),
    "a part of the model": (export, "save", 30_000, r"cannot write .*/model"),
    "the model but not the tokenizer": (export, "save", 70_000, r"cannot write .*/model"),
    "report": (run_command, "write_report", 0, r"cannot write .*report\.json"),
    "page": (run_command, "write_report", 24_000, r"cannot write .*report\.html"),
}
"""What does not fit any more: where the disk becomes full, the bytes that are left, and the error."""


OFTEN = ("state", "a part of the model")


@pytest.mark.parametrize("moment", [*OFTEN, *rarely(moment for moment in MOMENTS if moment not in OFTEN)])
def test_a_disk_that_fills_up_is_one_line_and_the_next_start_goes_on(
    moment: str, base: Path, whole: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, left, said = MOMENTS[moment]
    folder = disk / "run"
    with monkeypatch.context() as patch:
        if moment == "state":
            patch.setattr(answers, "BLOCK_SECONDS", 0.0)
        fill_before(patch, owner, name, disk, left)
        with pytest.raises(OutputError, match=rf"^{said}: .*No space left on device.*; free some space or") as caught:
            run(folder, make(base))
    assert "\n" not in str(caught.value)
    assert read_status(folder).get("status") != DONE
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".partial", ".old")]
    (disk / "filling").unlink()
    assert run(folder, make(base)).status == "done"
    for result in RESULTS:
        assert (folder / result).read_bytes() == (whole / result).read_bytes(), result
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("where", ["state of a training", *rarely(["answers", "model"])])
def test_a_full_disk_names_what_goes_on(where: str, base: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"state of a training": training_state, "answers": answers, "model": export}
    settings = make(base)
    if where == "state of a training":
        settings = replace(settings, schedule=Uniform([0.3]), recovery=Finetune(2, 0, batch=2, windows=4, tokens=8))
    fill_before(monkeypatch, owners[where], "save" if where == "model" else "write_arrays", disk, 0)
    (disk / "run" / ".hydra").mkdir(parents=True)  # as a command makes it
    (disk / "run" / ".compressor").touch()
    with pytest.raises(FullDisk) as caught:
        run(disk / "run", settings)
    assert str(caught.value).endswith(
        f": No space left on device; free some space, and go on with: compressor resume {disk / 'run'}"
    )


def test_what_was_whole_stays_whole(base: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and the answers of the search are not lost because the report does not fit."""
    fill_before(monkeypatch, run_command, "write_report", disk, 0)
    with pytest.raises(OutputError):
        run(disk / "run", make(base))
    assert (disk / "run" / "model" / "model.safetensors").is_file()
    assert (disk / "run" / "plan.json").is_file()
    assert list((disk / "run" / "state" / "answers").iterdir())


def test_model_gguf_does_not_fit(base: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_before(monkeypatch, export, "save_gguf", disk, 100_000)
    with pytest.raises(OutputError, match=r"^cannot write .*model\.gguf: No space left on device; free some space or"):
        run(disk / "run", make(base, gguf=True))
    assert not list((disk / "run").glob("*.gguf*")) and not list((disk / "run").glob(".*.tmp"))
    assert (disk / "run" / "model").is_dir()


def test_tensors_of_model_gguf_are_collected_beside_it(
    base: Path, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system's folder for temporary files may be small."""
    fill(disk)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda *_, **__: pytest.fail("they are not beside it"))
    settings = make(base, gguf=True)
    settings = replace(settings, compressor={"int8": Int8()}, schedule=Uniform())
    assert run(tmp_path / "run", settings).status == "done"
    assert (tmp_path / "run" / "model.gguf").is_file()
    assert "config and tokenizer could not be saved on trial: [Errno 28] No space left on device" in caplog.text


@pytest.mark.parametrize("kind", ["estimates", *rarely(["references"])])
def test_a_cache_on_a_full_disk_is_given_up_with_one_line(
    kind: str, base: Path, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (disk / "cache").mkdir()
    fill(disk)
    monkeypatch.setenv("COMPRESSOR_CACHE", str(disk / "cache"))
    settings = make(base)
    if kind == "estimates":
        monkeypatch.setenv("COMPRESSOR_CACHE_BYTES", "1000000")
        monkeypatch.setattr(reference, "write_cached", lambda *arguments: None)
        settings = replace(settings, compressor={"int8": Int8()}, schedule=Budget([0.2]))
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path / "run", settings).status == "done"
    lines = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert lines and all("it is not cached: cannot write" in line and "\n" not in line for line in lines), lines
    assert len(lines) == len(set(lines)) <= 2
    assert [path for path in (disk / "cache").rglob("*") if path.is_file()] == []


def test_the_room_is_tried_before_the_search(base: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "prove", lambda self: pytest.fail("the search was not refused"))
    fill(disk, left=400_000)
    with pytest.raises(ConfigError, match=rf"^the run needs .*B in {disk}/run, where .*B are free; free .*B, or"):
        run(disk / "run", make(base))
    assert [*(disk / "run").iterdir()] == []


def test_the_room_of_a_forecast_is_tried_before_the_model_runs(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forecast, "build_reference", lambda self: pytest.fail("the forecast was not refused"))
    fill(disk, left=400_000)
    with pytest.raises(ConfigError, match=rf"^the forecast needs .*B in {disk}/run, where .*B are free; free .*B, or"):
        make_forecast(disk / "run", make_forecast_settings())
    assert not (disk / "run" / "status.json").exists()


def test_a_full_disk_is_refused_before_anything_is_loaded(
    base: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "load", lambda *arguments: pytest.fail("the model was loaded"))
    fill(disk, left=folder_lock.FIRST_FILES // 2)
    with pytest.raises(OutputError, match=rf"^the disk of {disk}/run is full: \d+ bytes are needed .*hydra\.run\.dir="):
        run(disk / "run", make(base))


ARGUMENTS = (
    "run", "model=hf", "data.prefixes=2", "data.proof_prefixes=2", "data.prefix_tokens=4",
    "data.continuation_tokens=4", "metric=[fdtm]", "schedule=uniform", "schedule.targets=[0.5]", "export.verify=false",
)  # fmt: skip


def test_the_command_line_says_one_line(base: Path, tmp_path: Path, disk: Path) -> None:
    arguments = (*ARGUMENTS, "tracking=none", f"model.path={base}", f"hydra.run.dir={disk / 'run'}")
    for left, said in ((0, "is full: "), (400_000, "the run needs ")):
        fill(disk, left)
        done = call_command(tmp_path, *arguments)
        assert done.returncode == 1 and said in done.stderr, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.strip().count("\n") == 0
        assert not (disk / "run").exists()
    (disk / "filling").unlink()
    again = call_command(tmp_path, *arguments)
    assert again.returncode == 0, again.stderr
    assert read_status(disk / "run")["status"] == DONE


FILL_AFTER_A_JOB = """
import sys
from pathlib import Path
from compressor.commands import run
from tests.support.slow import rarely
from tests.support.small_disks import fill
execute, disk = run.execute, Path(sys.argv.pop(1))
def execute_and_fill(*arguments):
    record = execute(*arguments)
    fill(disk)
    return record
run.execute = execute_and_fill
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_between_two_jobs_keeps_the_table(base: Path, tmp_path: Path, disk: Path) -> None:
    """Not even the configuration of the second job can be written."""
    sweep = disk / "sweep"
    arguments = (*ARGUMENTS, "seed=1,2", "tracking=none", f"model.path={base}", f"hydra.sweep.dir={sweep}", "-m")
    code = f"{FILL_AFTER_A_JOB}{MAIN}"
    done = run_project([sys.executable, "-c", code, str(disk), *arguments], tmp_path, os.environ)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    goes_on = f"free some space, and go on with: compressor resume {sweep}"
    assert errors == [
        f"error: job 1: cannot write {sweep}/1/.hydra/config.yaml: No space left on device; {goes_on}",
        f"error: cannot write {sweep}/comparison.json: No space left on device; {goes_on}",
    ]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "seed=1" in done.stdout.rpartition("settings")[2]
    (disk / "filling").unlink()
    again = call_command(tmp_path, *arguments)
    assert (again.returncode, again.stderr) == (0, "")
    assert "job 0: was done before" in again.stdout
    assert [job["status"] for job in json.loads((sweep / "comparison.json").read_text())] == [DONE] * 2


def test_a_log_on_a_full_disk_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    file = LogFile("/dev/full")
    for _ in range(2):
        file.handle(logging.LogRecord("compressor", logging.INFO, "here", 1, "a line", None, None))
    with suppress(OSError):  # the last line is still there
        file.close()
    assert capsys.readouterr().err == "WARNING: /dev/full cannot be written: No space left on device; the run goes on\n"


def test_wandb_on_a_full_disk_and_the_log_end_and_the_run_goes_on(base: Path, tmp_path: Path, disk: Path) -> None:
    fill(disk)
    arguments = [*ARGUMENTS, "tracking.mode=offline", f"model.path={base}", f"hydra.run.dir={tmp_path / 'run'}"]
    code = (
        f"from compressor.commands.log_file import LogFile; LogFile._open = lambda self: open('/dev/full', 'a'); {MAIN}"
    )
    environment = os.environ | {"WANDB_DIR": str(disk / "wandb")}
    done = run_project([sys.executable, "-c", code, *arguments], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert any("W&B" in line for line in lines) and any("compressor.log cannot be written" in line for line in lines)
    assert len(lines) <= 3 and not any("Traceback" in line for line in lines), lines


@pytest.mark.slow
def test_wandb_whose_disk_fills_up_later_ends_and_the_run_goes_on(
    base: Path, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(disk / "wandb"))
    fill_before(monkeypatch, Session, "run", disk, 0)
    settings = replace(make(base), tracking=TrackingSettings(mode=TrackingMode.offline))
    assert run(tmp_path / "run", settings).status == "done"
    assert "Traceback" not in capfd.readouterr().err


def test_a_status_that_cannot_be_written_hides_no_error(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., None] = run_folder.write_status

    def lacks_room(folder: Path, status: str, *facts: object) -> None:
        if status != RUNNING:
            raise OutputError("cannot write status.json")
        real(folder, status, *facts)

    def fail(self: Run, *arguments: object) -> None:
        raise ConfigError("the first failure")

    monkeypatch.setattr(run_folder, "write_status", lacks_room)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "load", fail)
        with pytest.raises(ConfigError, match="the first failure"):
            run(tmp_path / "failed", make(base))
    with pytest.raises(CompressorError, match=r"cannot write status\.json"):
        run(tmp_path / "done", make(base))
    assert json.loads((tmp_path / "done" / "status.json").read_text())["status"] == RUNNING
