"""What zeros would take: counted by hand on the saved file, and measured by zstd in one piece."""

from pathlib import Path

import pytest
import safetensors.torch
import zstandard

from compressor.artifacts.run_record import Record
from compressor.contracts import Compressor
from compressor.report.formatting import list_facts
from compressor.settings import ExportSettings
from compressor.tracking.flat_record import flatten_record
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.uniform import Uniform
from tests.support.runs import make_settings, run


def run_with(folder: Path, compressor: Compressor, targets: list[float]) -> Record:
    return run(folder, make_settings(Uniform(targets=targets), compressor, export=ExportSettings(verify=False)))


def test_a_pruned_model_has_both(tmp_path: Path) -> None:
    record = run_with(tmp_path, Magnitude(), [0.5])
    path = tmp_path / "model" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    saved = 0
    for name in record.components:
        weight = weights[f"{name}.weight"]
        zeros = int((weight == 0).sum())
        saved += zeros * weight.itemsize * 8 - weight.numel()
    assert record.final is not None and record.final.bitmask_bytes is not None
    assert record.final.bitmask_bytes == pytest.approx(path.stat().st_size - saved / 8, rel=1e-3)  # a share of headers
    assert record.final.zstd_bytes == pytest.approx(len(zstandard.compress(path.read_bytes(), 3)), rel=0.01)
    assert flatten_record(record)["final/bitmask_bytes"] == record.final.bitmask_bytes
    (fact,) = [fact for fact in list_facts(record) if fact.name == "if zeros took less"]
    assert fact.words.endswith("by zstd")


@pytest.mark.parametrize(("compressor", "targets"), [(Rtn(bits=[4]), []), (Magnitude(), [0.01])])
def test_without_zeros_that_save_anything_there_is_none(
    tmp_path: Path, compressor: Compressor, targets: list[float]
) -> None:
    """A bitmask of a matrix with few zeros takes more than it saves."""
    record = run_with(tmp_path, compressor, targets)
    assert record.final is not None
    assert (record.final.bitmask_bytes, record.final.zstd_bytes) == (None, None)
    assert "if zeros took less" not in {fact.name for fact in list_facts(record)}
