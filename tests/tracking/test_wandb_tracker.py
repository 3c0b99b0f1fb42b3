"""Tracking: a real offline run that is read back, and everything that must not stop a compression."""

import json
import logging
import math
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.artifacts.plan_file import write_plan
from compressor.artifacts.run_record import ComponentRecord, FinalRecord, Record, RoundRecord
from compressor.contracts import Score, Treatment
from compressor.settings import TrackingMode, TrackingSettings
from compressor.tracking import wandb_tracker
from compressor.tracking.run_label import RunLabel
from compressor.tracking.wandb_tracker import Tracker, WandbTracker, open_tracker
from tests.support.wandb_log import read_items, read_log

KEY = "0123456789" * 4
"""Has the form of a key and opens nothing."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has never heard of W&B, and whose home must stay empty."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def leaves_no_trace(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does, the environment, the exit hooks, the home and the processes are as before."""
    environment, leave, hook = dict(os.environ), sys.exit, sys.excepthook
    yield
    set_by_test = {"WANDB_BASE_URL", "WANDB_CACHE_DIR", "WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC"}
    changed = {key for key in {*os.environ, *environment} if os.environ.get(key) != environment.get(key)}
    assert {key for key in changed if key != "PYTEST_CURRENT_TEST"} <= set_by_test
    assert (sys.exit, sys.excepthook) == (leave, hook)
    assert list(home.iterdir()) == []
    assert find_services() == []


def find_services() -> list[int]:
    """Living processes that wandb started for us; Linux only, elsewhere none is found."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if name.startswith(("wandb", "gpu_stats")) and int(parent) == os.getpid() and state != "Z":
            found.append(int(status.parent.name))
    return found


def make_score(mean: float) -> Score:
    return Score(mean, mean, mean, mean + 6, 0.0, 64.0, mean - 1.5, mean + 1.4, mean + 4, mean + 8, 64)


def make_round(amount: float, mean: float) -> RoundRecord:
    return RoundRecord(amount, amount, {"fdtm": make_score(mean), "kl": make_score(math.nan)}, 14, 2.5)


def make_record() -> Record:
    components = {
        "layers.0.q_proj": ComponentRecord("query", 0, (4, 8), 32, "magnitude", 0.5, 0.5, 16.0, 8.0),
        "lm_head": ComponentRecord("lm_head", None, (16, 8), 128, None, 0.0, math.nan, 16.0, 16.0),
    }
    final = FinalRecord(0.5, 0.4, 16.0, 8.0, 1000, {"fdtm": make_score(16.4)})
    base = {"bytes": 2000, "scores": {"fdtm": make_score(64.0), "kl": make_score(math.nan)}}
    return Record("done", {}, {}, noise_floor=64.0, base=base, final=final, components=components)


def log_everything(tracker: Tracker, folder: Path, rows: tuple[float, ...] | None = None) -> None:
    write_plan({"layers.0.q_proj": Treatment("magnitude", 0.5, rows=rows)}, folder / "plan.json")
    for name in ("report.html", "report.json"):
        (folder / name).write_text(f"what {name} says")
    tracker.log_round(1, make_round(0.2, 40.0))
    tracker.log_round(2, make_round(0.5, 16.4))
    tracker.log_final(make_record(), lambda: "<svg><title>ä</title></svg>", folder)


def read_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, without wandb's own logger: it does not propagate, and yet pytest may capture it."""
    return [record.getMessage() for record in caplog.records if record.name.partition(".")[0] != "wandb"]


def test_an_offline_run_is_on_disk_with_all_that_was_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    settings = TrackingSettings(mode=TrackingMode.offline, project="sparse")
    config = {"model": {"path": None}, "targets": [0.2, math.nan], "folder": Path("x")}
    with caplog.at_level(logging.INFO), open_tracker(settings, folder, config, RunLabel("first", "sweep/1")) as tracker:
        assert isinstance(tracker, WandbTracker)
        log_everything(tracker, folder)
    assert read_lines(caplog) == []
    (log,) = folder.glob("wandb/offline-run-*")
    assert tracker.sync_command is not None
    assert shlex.split(tracker.sync_command) == ["wandb", "sync", str(log.resolve())]
    records = read_log(folder)

    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name, run.run_group) == ("sparse", "first", "sweep/1")
    found = read_items(run.config.update)
    assert (found["model"], found["targets"], found["folder"]) == ({"path": None}, [0.2, None], "x")

    history = [read_items(record.history.item) for record in records if record.HasField("history")]
    first, second, media = history
    assert (first["round/index"], first["round/amount"], first["round/fdtm"]) == (1, 0.2, 40.0)
    assert (second["round/fdtm_low"], second["round/fdtm_high"], second["round/fdtm_p75"]) == pytest.approx(
        (14.9, 17.8, 22.4)
    )
    assert second["round/trials"] == 14 and not [key for key in second if "kl" in key]
    assert media["heat_map/_type"] == "html-file" and media["components/nrows"] == 2

    summary: dict[str, Any] = {}
    for record in records:
        if record.HasField("summary"):
            summary |= read_items(record.summary.update)
    assert (summary["status"], summary["noise_floor"], summary["base/bytes"]) == ("done", 64.0, 2000)
    assert (summary["base/fdtm"], summary["base/fdtm_low"], summary["base/fdtm_p75"]) == (64.0, 62.5, 70.0)
    assert not [key for key in summary if "kl" in key]
    assert (summary["final/amount"], summary["final/bytes"], summary["final/fdtm"]) == (0.5, 1000, 16.4)

    artifacts = {record.artifact.type: record.artifact for record in records if record.HasField("artifact")}
    (entry,) = artifacts["plan"].manifest.contents
    assert entry.path == "plan.json" and Path(entry.local_path) == (folder / "plan.json").resolve()
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"][:3] == ["name", "kind", "layer"] and rows["data"][1][:3] == ["lm_head", "lm_head", None]
    (page,) = folder.glob("wandb/offline-run-*/files/media/html/*.html")
    assert page.read_text(encoding="utf-8") == "<svg><title>ä</title></svg>"
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def test_rows_are_logged_with_their_plan(tmp_path: Path) -> None:
    with open_tracker(TrackingSettings(mode=TrackingMode.offline), tmp_path, {}, RunLabel("rows")) as tracker:
        log_everything(tracker, tmp_path, rows=(1.0, 0.5, 0.5, 0.0))
    (artifact,) = (r.artifact for r in read_log(tmp_path) if r.HasField("artifact") and r.artifact.type == "plan")
    paths = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert paths == {name: (tmp_path / name).resolve() for name in ("plan.json", "rows.safetensors")}


def test_the_report_is_logged_as_it_was(tmp_path: Path) -> None:
    """A page that is built anew before `wandb sync` must not make that fail: W&B has a copy."""
    with open_tracker(TrackingSettings(mode=TrackingMode.offline), tmp_path, {}, RunLabel("x")) as tracker:
        log_everything(tracker, tmp_path)
    (tmp_path / "report.html").write_text("another")
    (artifact,) = (r.artifact for r in read_log(tmp_path) if r.HasField("artifact") and r.artifact.type == "report")
    found = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert {name: path.read_text() for name, path in found.items()} == {
        name: f"what {name} says" for name in ("report.html", "report.json")
    }
    assert all(path.is_relative_to((tmp_path / "wandb").resolve()) for path in found.values())


def test_nothing_is_printed_and_runs_follow_one_another(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        with open_tracker(TrackingSettings(), tmp_path / name, {}, RunLabel(name)) as tracker:
            log_everything(tracker, tmp_path / name)
        assert read_log(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_fails_is_closed_as_failed(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="mine"),
        open_tracker(TrackingSettings(mode=TrackingMode.offline), tmp_path, {}, RunLabel("x")),
    ):
        raise ValueError("mine")
    assert [record.exit.exit_code for record in read_log(tmp_path) if record.HasField("exit")] == [1]


@pytest.mark.parametrize(
    "settings",
    [TrackingSettings(backend="none"), TrackingSettings(mode=TrackingMode.disabled)],
    ids=["none", "disabled"],
)
def test_without_tracking_wandb_is_not_even_imported(settings: TrackingSettings, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from compressor.settings import *\n"
        "from compressor.tracking.wandb_tracker import *\n"
        f"settings = TrackingSettings({str(settings.backend)!r}, {settings.mode})\n"
        f"with open_tracker(settings, Path({str(tmp_path / 'run')!r}), {{}}, RunLabel('x')) as tracker:\n"
        "    assert type(tracker) is Tracker\n"
        "    tracker.log_round(1, None); tracker.log_final(None, str, None)\n"
        "assert not {'wandb', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "run").exists()


def test_wandb_mode_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with open_tracker(TrackingSettings(), tmp_path, {}, RunLabel("x")) as tracker:
        assert type(tracker) is Tracker
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with open_tracker(TrackingSettings(), tmp_path, {}, RunLabel("x")) as tracker:
        assert isinstance(tracker, WandbTracker)
    assert read_log(tmp_path)


def make_session(mode: str = "online", url: str = "https://api.example.org", api_key: str | None = None) -> Any:  # noqa: ANN401
    return SimpleNamespace(mode=mode, base_url=url, api_key=api_key)


def test_only_who_is_logged_in_goes_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(wanted: TrackingMode, **session: Any) -> TrackingMode:  # noqa: ANN401
        return wandb_tracker._choose_mode(wanted, make_session(**session), "https://api.new.org")

    auto, online, offline = TrackingMode.auto, TrackingMode.online, TrackingMode.offline
    assert choose(auto) is offline and choose(online) is offline
    assert choose(auto, api_key=KEY) is online
    assert choose(auto, api_key=KEY, mode="offline") is offline and choose(auto, api_key=KEY, mode="dryrun") is offline
    assert choose(auto, mode="disabled") is TrackingMode.disabled
    # An explicit setting is nearer than the environment.
    assert choose(online, api_key=KEY, mode="offline") is online and choose(offline, api_key=KEY) is offline
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.example.org\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert choose(auto) is online and choose(auto, url="https://other.org") is offline
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert choose(auto) is offline and choose(auto, url="https://api.new.org") is online
    netrc.write_text("machine")
    assert choose(auto) is offline
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert choose(auto) is online


def test_online_without_a_login_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("a prompt"))
    with open_tracker(TrackingSettings(mode=TrackingMode.online), tmp_path, {}, RunLabel("x")) as tracker:
        assert isinstance(tracker, WandbTracker)
    (line,) = read_lines(caplog)
    assert line.startswith("not logged in to W&B at https://") and line.endswith("`wandb login` goes online")
    assert read_log(tmp_path)


def open_unreachable(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a key for a server that does not answer: offline after the bounded wait, and one line about it."""
    monkeypatch.setattr(wandb_tracker, "_unreachable", {})
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    began = time.monotonic()
    with open_tracker(TrackingSettings(), tmp_path, {}, RunLabel("x")) as tracker:
        tmp_path.mkdir(exist_ok=True)
        log_everything(tracker, tmp_path)
    assert time.monotonic() - began < wandb_tracker.INIT_SECONDS
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("compressor")]
    assert line.startswith("W&B cannot be reached (") and "; tracking offline, send it later with: wandb sync " in line
    assert "\n" not in line and KEY not in line
    assert read_log(tmp_path)
    assert not list(tmp_path.glob("wandb/run-*"))


def test_a_dead_network_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_unreachable("http://127.0.0.1:9", tmp_path, monkeypatch, caplog)


@pytest.mark.slow
def test_a_server_that_never_answers_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        open_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, monkeypatch, caplog)


def test_a_server_that_cannot_be_reached_is_not_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        open_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "0", monkeypatch, caplog)
        monkeypatch.setattr(wandb_tracker, "_find_obstacle", None)  # must not be called
        with open_tracker(TrackingSettings(), tmp_path / "1", {}, RunLabel("x")):
            pass
    assert len([line for line in read_lines(caplog) if line.startswith("W&B cannot be reached (")]) == 2


def test_the_folder_of_wandb_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "my wandb"))
    (tmp_path / "run").mkdir()
    with open_tracker(TrackingSettings(mode=TrackingMode.offline), tmp_path / "run", {}, RunLabel("x")) as tracker:
        pass
    (found,) = tmp_path.glob("my wandb/wandb/offline-run-*")
    assert tracker.sync_command == f"wandb sync '{found}'"
    assert not list(tmp_path.glob("run/wandb/*run-*"))


def test_a_wandb_that_cannot_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def fail(*arguments: object, **options: object) -> None:
        raise wandb.Error("no room\nat all")

    monkeypatch.setattr(wandb, "init", fail)
    with open_tracker(TrackingSettings(), tmp_path, {}, RunLabel("x")) as tracker:
        assert type(tracker) is Tracker
    assert read_lines(caplog) == ["W&B could not start (no room); the run goes on without it"]


def test_the_first_failure_is_logged_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        raise RuntimeError("disk full")

    with open_tracker(TrackingSettings(mode=TrackingMode.offline), tmp_path, {}, RunLabel("x")) as tracker:
        assert isinstance(tracker, WandbTracker)
        monkeypatch.setattr(tracker.run, "log", fail)
        log_everything(tracker, tmp_path)
    assert read_lines(caplog) == ["W&B failed (disk full); the run goes on without it"]
    assert len(calls) == 1
    assert [record.exit.exit_code for record in read_log(tmp_path) if record.HasField("exit")] == [0]


SERVICE_DIES = """
import importlib.util, logging, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("test_tracking", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
logging.basicConfig(level=logging.INFO, format="%(message)s")
settings = tests.TrackingSettings(mode=tests.TrackingMode.offline)
with tests.open_tracker(settings, Path(sys.argv[2]), {}, tests.RunLabel("x")) as tracker:
    services = tests.find_services()
    assert services
    for service in services:
        os.kill(service, signal.SIGKILL)
    tests.log_everything(tracker, Path(sys.argv[2]))
print("the run went on")
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds wandb's service in /proc, which is Linux's")
def test_a_service_that_dies_does_not_take_the_run_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVICE_DIES, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "the run went on\n")
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 2 and all(line.startswith("W&B ") for line in lines)


def test_a_session_of_the_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))

    leave, hook = sys.exit, sys.excepthook
    mine = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off"))
    try:
        with open_tracker(TrackingSettings(mode=TrackingMode.offline), tmp_path / "run", {}, RunLabel("x")) as tracker:
            log_everything(tracker, tmp_path / "run")
        assert wandb.run is mine and "WANDB_SERVICE" in os.environ
        mine.log({"mine": 1})
    finally:
        mine.finish()
        wandb.teardown()
        sys.exit, sys.excepthook = leave, hook
    assert read_log(tmp_path / "run")
