"""The check of a saved model: what it finds, and what it says if it could not be made."""

import json
import logging
import math
import re
import resource
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from compressor import export
from compressor.artifacts.from_json import rebuild
from compressor.artifacts.run_record import NOT_VERIFIED, VERIFIED, Record, VerificationRecord
from compressor.errors import OutputError
from compressor.export import reload_script, verification
from compressor.models import Model, load_model
from compressor.report import read_report, summarize_run
from compressor.resources import Memory
from compressor.settings import ComponentSettings, ExportSettings, ModelSettings
from compressor.tracking.flat_record import flatten_record
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.uniform import Uniform
from tests.support.exports import TOKENS, draw_tokens
from tests.support.families import save_checkpoint
from tests.support.runs import make_settings, run
from tests.support.slow import rarely
from tests.support.small_disks import fill, limited_files, small_disk

KILLED = "the process that reloads it was killed by SIGKILL, as the system does when memory runs out"
KILL = "os.kill(os.getpid(), 9)"
EXIT = "sys.exit(3)"
NO_FILES = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
NO_MEMORY = """
size = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20), size + (4 << 20)))
"""
LACKS = {
    KILL: KILLED,
    EXIT: "the process that reloads it ended with exit status 3 (",
    NO_FILES: "the disk had no room for its logits (",
    NO_MEMORY: "there was not enough memory for it (",
}
"""What happens to the process, and the reason that is given."""


def write_script(folder: Path, fault: str, once: bool = False) -> Path:
    """A script that does what reload_script does after a fault, or with `once` only the first time."""
    path, mark = folder / "script.py", folder / "mark"
    lines = ["import os, resource, runpy, sys", f"mark = {str(mark)!r}"]
    if once:
        fault = f"if not os.path.exists(mark):\n    open(mark, 'w').close()\n    {fault}"
    real = str(Path(reload_script.__file__))
    path.write_text(
        "\n".join([*lines, "import torch, transformers", fault, f"runpy.run_path({real!r}, None, '__main__')"])
    )
    return path


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Model, export.Exported]:
    """A model and its dense export."""
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base", with_tokenizer=True))))
    return model, export.save_dense(model, tmp_path / "run" / "model", {}, {})


def verify(model: Model, exported: export.Exported) -> VerificationRecord:
    return export.verify(exported, model, draw_tokens(), TOKENS - 4, trust_remote_code=False)


@pytest.mark.parametrize("fault", LACKS)
def test_a_check_that_could_not_be_made_is_not_a_failed_check(
    fault: str, saved: tuple[Model, export.Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "SCRIPT", write_script(tmp_path, fault))
    found = verify(*saved)
    assert found.state == NOT_VERIFIED and found.reason.startswith(LACKS[fault]), found
    assert "\n" not in found.reason and math.isnan(found.gap) and found.prefixes == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


@pytest.mark.parametrize("fault", [KILL, *rarely([NO_FILES])])
def test_it_is_tried_once_more_with_less(
    fault: str, saved: tuple[Model, export.Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "SCRIPT", write_script(tmp_path, fault, once=True))
    found = verify(*saved)
    assert (found.state, found.prefixes, found.gap, found.reason) == (VERIFIED, 1, 0, "")


def test_a_full_disk_of_this_process_is_no_fault_of_the_model(saved: tuple[Model, export.Exported]) -> None:
    with limited_files(50):  # the request does not fit
        found = verify(*saved)
    assert found.state == NOT_VERIFIED and found.reason.startswith("the disk had no room for its logits (")
    assert saved[1].path.is_dir()


def test_the_disk_of_the_run_is_really_full(tmp_path: Path) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base", with_tokenizer=True))))
    with small_disk(tmp_path / "disk", 4000) as disk:
        exported = export.save_dense(model, disk / "model", {}, {})
        fill(disk, left=12 << 10)  # for the tokens, and not for the logits
        found = verify(model, exported)
        assert found.state == NOT_VERIFIED and found.reason.startswith("the disk had no room for its logits (")
        assert {path.name for path in disk.iterdir()} == {"model", "filling"}


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))


def start_limited(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    return subprocess.run(command, preexec_fn=limit_memory, **options)


def start_none(command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (start_limited, "the process that reloads it (ended with exit status|was killed by)"),
        (start_none, "its check could not be made .*Resource temporarily unavailable"),
    ],
)
def test_a_process_that_cannot_be_started_says_nothing_about_the_model(
    start: Callable[..., object], said: str, saved: tuple[Model, export.Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "subprocess", SimpleNamespace(run=start))
    found = verify(*saved)
    assert found.state == NOT_VERIFIED
    assert re.match(said, found.reason), found.reason


def test_the_scored_model_may_lack_memory_too(
    saved: tuple[Model, export.Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*arguments: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(Model, "logits", lack)
    found = verify(*saved)
    assert found.state == NOT_VERIFIED and found.reason.startswith("there was not enough memory for it (")


def test_a_model_that_is_refused_is_a_failed_check(saved: tuple[Model, export.Exported], tmp_path: Path) -> None:
    (saved[1].path / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"^the saved model cannot be loaded by transformers \(.*\): it is not the"):
        verify(*saved)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model-unverified"]


def test_a_run_without_its_check_is_done_and_says_so_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verification, "SCRIPT", write_script(tmp_path, KILL))
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    settings = make_settings(
        Uniform(), Int8(), model=ModelSettings(path=str(base)), export=ExportSettings(gguf=True, verify=True)
    )
    with caplog.at_level(logging.WARNING):
        record = run(tmp_path / "run", settings)
    assert record.status == "done" and (tmp_path / "run" / "model").is_dir()
    assert (tmp_path / "run" / "model.gguf").is_file()
    assert [path.name for path in (tmp_path / "run").glob("*unverified*")] == []
    sentence = f"The saved model was not verified: {KILLED}."
    warnings = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert warnings == [sentence, sentence.replace("The saved model", "model.gguf")]
    read = read_report(tmp_path / "run")
    assert read.export is not None and read.export.verification is not None and read.export.gguf is not None
    assert (read.export.verification.state, read.export.verification.reason) == (NOT_VERIFIED, KILLED)
    assert sentence in read.notes
    page = (tmp_path / "run" / "report.html").read_text()
    console = Console(width=400)
    with console.capture() as shown:
        console.print(summarize_run(read))
    for text in (page, shown.get()):
        assert text.count(f"not verified: {KILLED}") >= 2
    tracked = flatten_record(record)
    for prefix in ("export/", "export/gguf/"):
        assert tracked[f"{prefix}verification"] == NOT_VERIFIED
        assert tracked[f"{prefix}not_verified_because"] == KILLED


FEW = ComponentSettings(include=[r"layers\.0\.mlp"])


def test_a_check_that_was_made_is_told_everywhere(tmp_path: Path) -> None:
    record = run(tmp_path / "run", make_settings(Uniform(), export=ExportSettings(verify=True), components=FEW))
    assert record.export is not None and record.export.verification is not None
    assert (record.export.verification.state, record.export.verification.reason) == (VERIFIED, "")
    assert record.export.verification.seconds > 0
    tracked = flatten_record(record)
    assert tracked["export/verification"] == VERIFIED and "export/not_verified_because" not in tracked


def test_verification_can_be_left_out(tmp_path: Path) -> None:
    record = run(tmp_path / "run", make_settings(Uniform(), components=FEW))
    assert record.export is not None and record.export.verification is None
    assert not any("loaded again" in note for note in record.notes)
    assert "export/verification" not in flatten_record(record)


def test_without_memory_for_a_second_copy_nothing_is_checked(
    saved: tuple[Model, export.Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "read_memory", lambda device: Memory(100, 100, 101))
    found = verify(*saved)
    assert (found.state, found.reason) == (NOT_VERIFIED, "there is no memory for a second copy of it")


def test_the_result_is_a_sentence() -> None:
    tokens = torch.tensor([[1, 2, 0], [2, 2, 2]])
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 2], [0, 2, 2]]), 3)
    assert verification.count_leading(logits, tokens).tolist() == [2, 0]
    describe = export.describe_verification
    assert "up to 1e-05, within the 0.002 of rounding" in describe("It", VerificationRecord(4, 1e-5, 0.002, 1, 3.0))
    assert "of 2 proof prefixes bit for bit" in describe("It", VerificationRecord(2, 0.0, 0.002, 0, 3.0))


def test_records_of_earlier_versions_are_read() -> None:
    old = json.loads('{"prefixes": 4, "gap": 0.0, "tolerance": 0.002, "diverged": 0, "seconds": 1.5}')
    found = rebuild(VerificationRecord, old)
    assert (found.state, found.reason, found.gap) == (VERIFIED, "", 0.0)
    assert rebuild(Record, {"status": "done", "config": {}, "versions": {}}).export is None


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (MemoryError(), reload_script.LACKS_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), reload_script.LACKS_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), reload_script.LACKS_MEMORY),
        (OSError(12, "Cannot allocate memory"), reload_script.LACKS_MEMORY),
        (RuntimeError("I/O error: Cannot allocate memory (os error 12)"), reload_script.LACKS_MEMORY),
        (OSError(28, "No space left on device"), reload_script.LACKS_DISK),
        (OSError(122, "Disk quota exceeded"), reload_script.LACKS_DISK),
        (RuntimeError("I/O error: No space left on device (os error 28)"), reload_script.LACKS_DISK),
        (OSError(2, "No such file or directory"), None),
        (ValueError("the header is wrong"), None),
    ],
)
def test_a_lack_is_found_also_behind_other_errors(error: Exception, lack: str | None) -> None:
    assert reload_script.find_lack(error) == lack
    outer = ValueError("cannot load the model")
    outer.__cause__ = error
    assert reload_script.find_lack(outer) == lack


def test_only_the_last_line_of_the_process_counts() -> None:
    assert verification.read_outcome('noise {\n{"outcome": "refused", "reason": "x"}\n') == ("refused", "x")
    for output in ("", "noise", "[]", "{}", '{"outcome": 1}'):
        assert verification.read_outcome(output) == ("", "")
