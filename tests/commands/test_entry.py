"""The process of the console script: signals while it imports, and output that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from compressor.artifacts.folder_lock import held_folder
from compressor.artifacts.run_files import STATUS
from compressor.commands.command_record import write_command
from tests.support.command_line import call_command
from tests.support.slow import rarely

SLOW_IMPORTS = """
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), {signum})

sys.meta_path.insert(0, Finder())
from compressor.commands.entry import main
sys.argv[0] = "compressor"
main()
"""
"""Gets a signal just before a module is imported."""
MODULES = ["compressor.commands.main", "numpy", "hydra", "rich.console", "compressor_plugins.metrics", "torch"]
RUN = ["run", "schedule=uniform", "tracking=none", "hydra.run.dir=out"]


@pytest.mark.parametrize("signum", [signal.SIGINT, *rarely([signal.SIGTERM, signal.SIGHUP])])
@pytest.mark.parametrize("name", MODULES)
def test_a_signal_while_modules_are_imported_is_one_line(name: str, signum: signal.Signals, tmp_path: Path) -> None:
    code = SLOW_IMPORTS.format(name=name, signum=int(signum))
    done = subprocess.run(
        [sys.executable, "-c", code, *RUN], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (128 + signum, "")
    assert done.stderr == f"error: stopped by {signum.name}\n"


@pytest.mark.parametrize(
    "name", ["hydra", *rarely(["compressor.commands.main", "compressor_plugins.metrics", "torch"])]
)
def test_a_signal_while_resume_begins_names_the_command_that_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with other arguments."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a run"
    with held_folder(folder):
        write_command(folder, RUN[1:], None)
        code = SLOW_IMPORTS.format(name=name, signum=int(signal.SIGTERM))
        (folder / STATUS).write_text("{}")
    command = [sys.executable, "-c", code, "--debug", "resume", "a run", "resume.accept=[all]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    said = f"error: stopped by SIGTERM; go on with: compressor resume '{folder}'\n"
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", said)


@pytest.mark.parametrize("seconds", [0.3, *rarely([0.5, 0.8, 1.2, 2.0, 3.0])])
def test_a_signal_at_any_moment_after_the_start_is_at_most_one_line(seconds: float, tmp_path: Path) -> None:
    """The process has printed that its handlers are in place before the clock starts."""
    code = (
        "import sys; from compressor.commands import entry; from compressor.commands.stopping import stop; "
        "stop.listen(); print('ready', flush=True); sys.argv[0] = 'compressor'; entry.main()"
    )
    command, pipe = [sys.executable, "-c", code, *RUN, "data.prefixes=4000"], subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.startswith("error: stopped by SIGINT") and errors.count("\n") == 1


SHOWING = [["plugins", "--json"], ["plugins"], ["run", "--help"], ["run", "--cfg", "job"], ["--hydra-help"]]


def call(arguments: list[str], folder: Path, output: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compressor.commands.entry", *arguments]
    return subprocess.run(
        command, cwd=folder, stdout=output, stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("arguments", [SHOWING[0], SHOWING[3], *rarely([SHOWING[1], SHOWING[2], SHOWING[4]])])
def test_output_that_is_the_result_must_be_written(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = call(arguments, tmp_path, full.fileno())
    said = "error: the output cannot be written: No space left on device; free some space, or write it elsewhere\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("arguments", [SHOWING[0], *rarely(SHOWING[1:])])
def test_a_closed_pipe_is_silent(arguments: list[str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = call(arguments, tmp_path, write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_closed_streams_are_no_failure(tmp_path: Path) -> None:
    """No file of the command takes the place of a stream that is closed."""
    small = "schedule=uniform schedule.targets=[0.5] metric=[kl] data.prefixes=2 tracking=none export.verify=false"
    lengths = "data.prefix_tokens=4 data.continuation_tokens=4"
    command = f"{sys.executable} -m compressor.commands.entry run {small} {lengths} hydra.run.dir=out <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "done"
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!")


def test_the_version_is_that_of_compressor(tmp_path: Path) -> None:
    done = call_command(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"compressor {version('compressor')}\n")


LEAVES_A_THREAD = """
import sys, threading, time
from compressor.commands import left_threads
from compressor.commands.entry import main
left_threads.WAIT = 0.1
for name, daemon, seconds in (("endless", False, 1000), ("short", False, 0), ("in the background", True, 1000)):
    threading.Thread(target=time.sleep, args=(seconds,), name=name, daemon=daemon).start()
sys.argv[0] = "compressor"
main()
"""


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["unknown"], 1)])
def test_threads_of_plugins_that_do_not_end_do_not_keep_the_process(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_A_THREAD, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status
    *others, last = done.stderr.splitlines()
    assert last == "WARNING: threads of a plugin do not end: endless; the command ends all the same"
    assert len(others) == status and bool(done.stdout) == (not status)


def test_a_name_in_utf_8_where_python_reads_ascii_says_what_to_set(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import sys; sys.argv[0] = 'compressor'; from compressor.commands.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "hydra.run.dir=été"],
        cwd=tmp_path,
        capture_output=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.strip().endswith(b"Python reads arguments as ascii here: set PYTHONUTF8=1")
