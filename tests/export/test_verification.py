"""A check of the saved model that could not be made is no failed check: it is tried again, and then the model stays."""

import errno
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from compressor.artifacts.run_record import Record, VerificationRecord
from compressor.export import verification
from compressor.resources import Memory
from compressor.settings import ComponentSettings, ExportSettings
from compressor_plugins.schedules.uniform import Uniform
from tests.support.runs import make_settings, run

KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
NO_MEMORY = """
torch.zeros(1)
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
"""
NO_ROOM = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))"


def replace_script(monkeypatch: pytest.MonkeyPatch, folder: Path, before: str) -> None:
    """Let the process that loads the saved model begin with these lines."""
    script = folder / "script.py"
    imports = "import json, os, pathlib, resource, runpy, signal, sys, torch, transformers, safetensors.torch"
    script.write_text(f"{imports}\n{before}\nrunpy.run_path({str(verification.SCRIPT)!r}, run_name='__main__')\n")
    monkeypatch.setattr(verification, "SCRIPT", script)


def save(folder: Path) -> Record:
    return run(
        folder,
        make_settings(
            Uniform(targets=(0.5,)),
            components=ComponentSettings(include=("layers.0",)),
            export=ExportSettings(verify=True),
        ),
    )


def get_check(record: Record) -> VerificationRecord:
    assert record.export is not None and record.export.verification is not None
    return record.export.verification


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (KILLED, "the process that loads it was ended by SIGKILL"),
        (NO_MEMORY, "allocate"),
        (NO_ROOM, "File too large"),
        ("sys.exit(3)", "the process that loads it ended with status 3: no message"),
    ],
)
def test_a_check_that_could_not_be_made_keeps_the_model(
    before: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_script(monkeypatch, tmp_path, before)
    with caplog.at_level(logging.WARNING, "compressor"):
        record = save(tmp_path / "run")
    failure = get_check(record).failure
    assert failure is not None and reason in failure
    told = f"The saved model was not verified: {failure}. It is saved all the same."
    assert told in record.notes and told in caplog.text
    assert record.status == "done" and (tmp_path / "run" / "model" / "config.json").exists()
    assert not (tmp_path / "run" / "model-unverified").exists()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["export"]["verification"]["failure"] == failure
    assert "not verified" in (tmp_path / "run" / "report.html").read_text()


def test_it_is_tried_once_more_with_one_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = f"pathlib.Path({str(tmp_path / 'was here')!r})"
    replace_script(monkeypatch, tmp_path, f"if not {marker}.exists():\n    {marker}.touch()\n    {KILLED}")
    check = get_check(save(tmp_path / "run"))
    assert (check.failure, check.prefixes, check.gap) == (None, 1, 0)


def test_no_room_for_what_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**always: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(verification, "tempfile", SimpleNamespace(TemporaryDirectory=fail))
    failure = get_check(save(tmp_path / "run")).failure
    assert failure is not None and "No space left on device" in failure


def test_no_memory_for_a_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "read_memory", lambda device: Memory(100, 100, 101))
    record = save(tmp_path / "run")
    assert get_check(record).failure == "there is no memory for a second copy of it"
