"""The default search end to end on tiny random models of several families."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compressor.artifacts.plan_file import read_plan
from compressor.artifacts.run_record import Record
from compressor.commands.run import execute
from compressor.contracts import Compressor
from compressor.models import load_model
from compressor.plugins import installed
from compressor.settings import DataSettings, ExportSettings, ModelSettings, Settings, TrackingSettings
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.budget.budget import Budget, EstimateBy, Granularity
from compressor_plugins.schedules.plan import ReplayedPlan
from compressor_plugins.schedules.uniform import Uniform
from tests.support.families import save_checkpoint
from tests.support.slow import rarely

FAMILIES = ["llama", *rarely(["gpt2", "mixtral"])]
DATA = DataSettings(prefixes=4, proof_prefixes=3, prefix_tokens=4, continuation_tokens=6)
CASES: dict[str, tuple[Budget, list[Compressor]]] = {
    "matrix": (Budget([0.2, 0.4], corrections=2), [Magnitude()]),
    "row": (Budget([0.4], corrections=1, granularity=Granularity.row), [Magnitude()]),
    "bits": (Budget(bits=5.0, corrections=1), [Rtn(group=16)]),
    "mixed": (Budget([0.4], corrections=1), [Magnitude(), Int8()]),
}


def run(folder: Path, base: str, schedule: Any, compressors: list[Compressor]) -> Record:  # noqa: ANN401 - any schedule
    folder.mkdir()
    settings = Settings(
        metric={"kl": Kl(), "fdtm": Fdtm()},
        compressor={compressor.name: compressor for compressor in compressors},
        schedule=schedule,
        model=ModelSettings(path=base),
        data=DATA,
        tracking=TrackingSettings(backend="none"),
        export=ExportSettings(format="dense", verify=False),
    )
    return execute(settings, installed(), folder, {"seed": settings.seed}, "compressor run")


class Finished(dict[tuple[str, str], tuple[str, Path, Record]]):
    """Checkpoint, folder and record of the run of a case by a family, made when it is first asked for."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home

    def __missing__(self, key: tuple[str, str]) -> tuple[str, Path, Record]:
        family, case = key
        base, folder = self.home / family, self.home / f"{family} {case}"
        if not base.exists():
            save_checkpoint(family, base, with_tokenizer=True)
        self[key] = str(base), folder, run(folder, str(base), *CASES[case])
        return self[key]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_budget_is_kept(finished: Finished, family: str, case: str) -> None:
    _, folder, record = finished[family, case]
    schedule, _ = CASES[case]
    assert record.final is not None
    if case == "bits":
        assert 4.0 < record.final.packed_bits_per_weight <= 5.0
    else:
        assert [entry.target for entry in record.rounds] == schedule.targets
        exact = len(record.components) / record.base["parameters"]  # amounts are whole weights of each component
        for entry in record.rounds:
            assert entry.target is not None and entry.target - 1e-9 <= entry.amount
            assert entry.amount <= entry.target + (0.05 if case == "mixed" and record.notes else max(exact, 1e-3))
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "done" and report["final"]["scores"].keys() == {"kl", "fdtm"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_run_decides_the_same(finished: Finished, family: str, case: str, tmp_path: Path) -> None:
    base, first, record = finished[family, case]
    schedule, compressors = CASES[case]
    run(tmp_path / "second", base, schedule, compressors)
    names = ["plan.json", "sequences.jsonl", *(["rows.safetensors"] if case == "row" else [])]
    for name in names:
        assert (first / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    replayed = run(tmp_path / "third", base, ReplayedPlan(str(first / "plan.json")), compressors)
    if len(record.rounds) == 1:
        assert replayed.final is not None and record.final is not None
        assert replayed.final.scores == record.final.scores


@pytest.mark.parametrize("case", ["matrix", "row"])
@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_of_the_saved_model_are_those_of_the_plan(finished: Finished, family: str, case: str) -> None:
    _, folder, _ = finished[family, case]
    model, plan = load_model(ModelSettings(path=str(folder / "model"))), read_plan(folder / "plan.json")
    for name, component in model.components.items():
        zeros = (model.read(name) == 0).sum(1)
        if name not in plan:
            assert not zeros.any()
            continue
        assert int(zeros.sum()) == pytest.approx(plan[name].amount * component.parameters, abs=1e-3)
        if case == "row":
            rows = np.array(plan[name].rows) * component.shape[1]
            assert zeros.tolist() == pytest.approx(rows, abs=1e-3)


def test_the_plan_that_measured_best_is_kept(tmp_path: Path) -> None:
    base = str(save_checkpoint("llama", tmp_path / "base", with_tokenizer=True))
    schedule = Budget([0.5], objective="fdtm", estimate=EstimateBy.measured, corrections=2)
    run(tmp_path / "run", base, schedule, [Int8(), Magnitude(pattern="2:4")])
    lines = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    best = max(line["scores"]["fdtm"]["mean"] for line in lines)
    assert report["rounds"][0]["scores"]["fdtm"]["mean"] == pytest.approx(best)


ROUNDS: dict[str, tuple[Any, list[Compressor]]] = {
    "integers": (Uniform([0.75, 0.875]), [Rtn(group=16)]),
    "two widths": (Budget([0.5, 0.8], corrections=1), [Int8(), Int4(group=16)]),
    "pruned, then integers": (Budget([0.3, 0.6], corrections=1), [Magnitude(), Int8()]),
    "rows": (Budget([0.3, 0.6], corrections=1, granularity=Granularity.row), [Magnitude()]),
}


@pytest.mark.parametrize("case", ROUNDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_of_several_rounds_gives_the_same_weights_at_once(family: str, case: str, tmp_path: Path) -> None:
    """The second round treats the base's weights: rounding what is rounded already would be another model."""
    schedule, compressors = ROUNDS[case]
    base = str(save_checkpoint(family, tmp_path / "base", with_tokenizer=True))
    record = run(tmp_path / "rounds", base, schedule, compressors)
    assert len(record.rounds) == 2
    run(tmp_path / "once", base, ReplayedPlan(path=str(tmp_path / "rounds" / "plan.json")), compressors)
    found, expected = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("rounds", "once"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
