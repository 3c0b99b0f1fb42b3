"""The main job end to end on the embedded model: what it leaves behind, and that every number can be checked."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from compressor.artifacts.run_files import MARK, SAVED
from compressor.artifacts.run_status import read_status
from compressor.commands import cost, text_cost
from compressor.commands.failures import Failures
from compressor.commands.terminal import Terminal
from compressor.contracts import Compressor
from compressor.errors import CompressorError
from compressor.models import load_model
from compressor.plugins import installed
from compressor.settings import (
    ComponentSettings,
    DType,
    ExportSettings,
    MemorySettings,
    ModelSettings,
    SweepSettings,
)
from compressor_plugins.quantization.gptq import Gptq
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.budget.budget import Budget, EstimateBy
from compressor_plugins.schedules.fdt_allocation import FdtAllocation
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.plan import ReplayedPlan
from compressor_plugins.schedules.uniform import Uniform
from tests.support.families import FAMILIES, TWO, each, save_checkpoint
from tests.support.references import count_leading, generate
from tests.support.runs import METRICS, make_settings, run
from tests.support.slow import rarely_cases
from tests.support.warm_processes import run_plain

RELOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
network = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokens = torch.tensor(json.loads(sys.argv[2]))
with torch.inference_mode():
    print(json.dumps(network(tokens[:, :-1]).logits.argmax(-1).tolist()))
"""


@pytest.mark.slow
def test_a_smaller_memory_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration data is gathered in many passes and waits on disk, and no compressed weight is kept."""
    monkeypatch.setattr(cost, "read_memory", lambda device: None)  # else the run is refused
    monkeypatch.setattr(text_cost, "read_host_memory", lambda: None)
    records, files = [], []
    for memory in (MemorySettings(), MemorySettings("64KiB", 8)):
        folder = tmp_path / str(memory.host)
        components = ComponentSettings(include=[r"layers\.0\.(self_attn|mlp\.down)"])
        schedule, sweep = Budget([0.6], estimate=EstimateBy.measured), SweepSettings(cache=False)
        settings = make_settings(schedule, Gptq(bits=[4, 8]), components=components, sweep=sweep, memory=memory)
        records.append(run(folder, settings))
        files.append([path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))])
    large, small = records
    assert sum(r.passes for r in small.rounds) > 2 + sum(r.passes for r in large.rounds)
    assert files[0] == files[1] and files[0]
    assert large.final == small.final and large.components == small.components
    assert [r.scores for r in large.rounds] == [r.scores for r in small.rounds]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fresh_reloads: None) -> Path:
    """A finished run of Algorithm 1 on some of the tiny model's components."""
    folder = tmp_path_factory.mktemp("run")
    schedule = FdtAllocation(targets=[0.2, 0.4])
    components = ComponentSettings(include=[r"layers\.[02]\."])
    run(folder, make_settings(schedule, components=components, export=ExportSettings()))
    return folder


def test_the_folder_holds_what_was_promised(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    promised = {"report.html", "report.json", "plan.json", "scores.jsonl", "reference.safetensors", "sequences.jsonl"}
    assert promised | {"model"} <= names
    assert {name for name in names if name.startswith(".")} == {MARK, SAVED}
    held = {path.name for path in (finished / "model").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "compression.json", "tokenizer.json"} <= held


def test_report_is_complete_and_adds_up(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["status"] == "done"
    assert report["noise_floor"] == 16
    assert [round(r["amount"], 3) for r in report["rounds"]] == [0.2, 0.4]
    assert [r["target"] for r in report["rounds"]] == [0.2, 0.4]
    components = report["components"].values()
    assert len(components) == 14
    assert report["rounds"][0]["trials"] == 1 + 2 * 14
    total = sum(c["parameters"] for c in components)
    assert sum(c["amount"] * c["parameters"] for c in components) / total == pytest.approx(0.4, abs=1e-4)
    assert report["final"]["sparsity"] == pytest.approx(0.4, abs=1e-3)
    assert report["final"]["bytes"] == (finished / "model" / "model.safetensors").stat().st_size
    assert set(report["final"]["scores"]) == set(METRICS)
    score = report["final"]["scores"]["fdtm"]
    assert score["low"] <= score["mean"] <= score["high"]
    assert score["n"] == 5
    assert len((finished / "scores.jsonl").read_text().splitlines()) == sum(r["trials"] for r in report["rounds"])


def test_fdt_of_the_result_is_what_generate_says(finished: Path) -> None:
    """The independent oracle: both models write freely; count the leading tokens that they share."""
    tokens = safetensors.torch.load_file(finished / "reference.safetensors")["tokens"]
    base = load_model(ModelSettings())
    candidate = load_model(ModelSettings(path=str(finished / "model"), dtype=DType.float32))
    prefixes = tokens[:, :8]
    assert torch.equal(generate(base, prefixes, 16), tokens)
    shared = count_leading(tokens[:, 8:], generate(candidate, prefixes, 16)[:, 8:])
    lines = [json.loads(line) for line in (finished / "sequences.jsonl").read_text().splitlines()]
    assert [line["fdtm"] for line in lines] == shared
    report = json.loads((finished / "report.json").read_text())
    assert report["final"]["scores"]["fdtm"]["mean"] == pytest.approx(np.mean(shared))


def test_the_saved_model_says_the_same_in_a_new_process(finished: Path) -> None:
    tokens = safetensors.torch.load_file(finished / "reference.safetensors")["tokens"]
    command = [sys.executable, "-c", RELOAD, str(finished / "model"), json.dumps(tokens.tolist())]
    done = run_plain(command)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    predicted = torch.tensor(said)[:, -16:]
    sdt = (predicted != tokens[:, -16:]).sum(1).tolist()
    lines = [json.loads(line) for line in (finished / "sequences.jsonl").read_text().splitlines()]
    assert [line["sdtm"] for line in lines] == sdt


def test_the_run_itself_has_checked_the_saved_model(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    checked = report["export"]["verification"]
    assert (report["export"]["format"], report["export"]["packed"]) == ("dense", 0)
    assert (checked["gap"], checked["diverged"], checked["prefixes"]) == (0, 0, 4)
    assert any("gives the scored logits of 4 proof prefixes bit for bit" in note for note in report["notes"])


def test_the_saved_model_keeps_the_checkpoints_dtype_and_every_value(finished: Path) -> None:
    saved = safetensors.torch.load_file(finished / "model" / "model.safetensors")
    base = load_model(ModelSettings())
    assert {tensor.dtype for tensor in saved.values()} == {base.stored_dtype}
    assert json.loads((finished / "model" / "config.json").read_text())["dtype"] == str(base.stored_dtype)[6:]
    for name in base.components:
        weight, kept = base.read(name), saved[f"{name}.weight"].float()
        assert torch.equal(weight[kept != 0], kept[kept != 0])
    report = json.loads((finished / "report.json").read_text())
    for name, component in report["components"].items():
        assert (saved[f"{name}.weight"] == 0).float().mean().item() == pytest.approx(component["sparsity"])


def test_the_plan_replays_to_the_same_scores(finished: Path, tmp_path: Path) -> None:
    schedule = ReplayedPlan(path=str(finished / "plan.json"))
    record = run(tmp_path, make_settings(schedule, components=ComponentSettings(include=[r"layers\.[02]\."])))
    report = json.loads((finished / "report.json").read_text())
    assert record.final is not None
    again = {name: score.to_json() for name, score in record.final.scores.items()}
    assert again == report["final"]["scores"]


def strip_times(text: str) -> list[dict[str, object]]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


@pytest.mark.slow
def test_the_same_seed_decides_the_same(finished: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    schedule = FdtAllocation(targets=[0.2, 0.4])
    run(tmp_path, make_settings(schedule, components=ComponentSettings(include=[r"layers\.[02]\."])))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (tmp_path / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()
    assert (tmp_path / "sequences.jsonl").read_bytes() == (finished / "sequences.jsonl").read_bytes()
    scores = [strip_times((folder / "scores.jsonl").read_text()) for folder in (tmp_path, finished)]
    assert scores[0] == scores[1]
    hashes = [(folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path, finished)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("family", each(FAMILIES, TWO))
def test_every_family_runs_and_reloads(tmp_path: Path, family: str) -> None:
    save_checkpoint(family, tmp_path / "base", with_tokenizer=True)
    settings = make_settings(GlobalThreshold(targets=[0.3]), model=ModelSettings(path=str(tmp_path / "base")))
    record = run(tmp_path / "run", settings)
    assert record.final is not None
    assert record.final.sparsity == pytest.approx(0.3, abs=2e-3)
    tokens = safetensors.torch.load_file(tmp_path / "run" / "reference.safetensors")["tokens"]
    candidate = load_model(ModelSettings(path=str(tmp_path / "run" / "model")))
    predicted = candidate.logits(tokens[:, :-1], 16).argmax(-1)
    agrees = (predicted == tokens[:, -16:]).long().cumprod(1).sum(1)
    assert record.final.scores["fdtm"].mean == pytest.approx(agrees.double().mean().item())


@pytest.mark.parametrize(
    ("compressor", "amount", "bits"), [(Rtn(bits=[4], group=32), 0.75, 4.0), *rarely_cases([(Int8(), 0.5, 8.0)])]
)
def test_integers_are_accounted_with_their_scales(
    tmp_path: Path, compressor: Compressor, amount: float, bits: float
) -> None:
    record = run(tmp_path, make_settings(Uniform(), compressor))
    assert record.final is not None
    assert record.final.amount == pytest.approx(amount)
    assert bits < record.final.packed_bits_per_weight < bits + 1
    assert record.final.bits_per_weight == pytest.approx(record.final.packed_bits_per_weight, rel=0.01)
    dense = make_settings(Uniform(), compressor, export=ExportSettings(format="dense", verify=False))
    again = run(tmp_path / "dense", dense)
    assert again.final is not None
    assert again.final.packed_bits_per_weight == record.final.packed_bits_per_weight
    exported = safetensors.torch.load_file(tmp_path / "dense" / "model" / "model.safetensors")
    dtype_bits = torch.finfo(next(iter(exported.values())).dtype).bits
    assert again.final.bits_per_weight == dtype_bits


def test_a_failed_run_leaves_one_line_and_no_model(tmp_path: Path) -> None:
    settings = make_settings(Uniform(targets=[0.9, 0.2]))
    with pytest.raises(CompressorError, match="targets"):
        run(tmp_path, settings)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "failed"
    assert "targets" in report["error"] and "\n" not in report["error"]
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_is_no_bug(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, said = Terminal(), []
    monkeypatch.setattr(terminal, "fail", said.append)
    failures = Failures(terminal)
    with failures.caught(tmp_path):
        raise error
    (line,) = said
    assert failures.status == 1
    assert line.startswith("no memory is left (") and "lower sweep.batch or data.prefixes" in line


def test_a_finished_run_is_not_overwritten(finished: Path) -> None:
    before = (finished / "report.json").read_bytes()
    with pytest.raises(CompressorError, match="already holds a finished run"):
        run(finished, make_settings(Uniform()))
    assert (finished / "report.json").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("lost"), 70, "a bug of compressor, ValueError: lost; please report it"),
        (CompressorError("for the user"), 1, "for the user"),
        (MemoryError(), 1, "compressor `magnitude` of compressor .* failed in `compress_each`.*: MemoryError"),
    ],
)
def test_a_bug_of_a_built_in_plugin_is_one_of_ours(
    error: Exception, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    installed()
    monkeypatch.setattr("compressor_plugins.pruning.selection.lowest_of_matrix_each", fail)
    said: list[str] = []
    terminal = Terminal()
    monkeypatch.setattr(terminal, "fail", said.append)
    failures = Failures(terminal)
    with failures.caught(tmp_path):
        run(tmp_path / "run", make_settings(Uniform(targets=[0.5])))
    assert failures.status == status and re.search(f"^{message}", said[0]), said
    assert read_status(tmp_path / "run")["status"] == "failed"
