"""Every plugin that is installed passes the contract suite of its kind; the suites and the tiny checkpoint work."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compressor.artifacts.plan_file import write_plan
from compressor.contracts import Metric, Schedule, Treatment
from compressor.plugins import installed
from compressor.testing import CompressorContract, MetricContract, ScheduleContract, make_tiny_checkpoint
from compressor.testing.problems import COMPONENTS
from tests.support.slow import rarely
from tests.support.warm_processes import run_project


class TestMetrics(MetricContract):
    @pytest.fixture(params=sorted(installed().metrics))
    def plugin(self, request: pytest.FixtureRequest) -> Metric:
        return installed().metrics[request.param]()


for _name, _compressor in installed().compressors.items():  # a suite for each, which collects what applies to it
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (CompressorContract,), {"instance": _compressor()})


class TestSchedules(ScheduleContract):
    @pytest.fixture(params=[*sorted(installed().schedules), *rarely(["evolution, of all generations"])])
    def plugin(self, request: pytest.FixtureRequest, tmp_path: Path) -> Schedule:
        name, _, everything = request.param.partition(",")
        options: dict[str, Any] = {}
        if name == "evolution" and not everything:
            options["generations"] = 10
        if name == "plan":
            options["path"] = str(tmp_path / "plan.json")
            plan = {component.name: Treatment("prune", 0.25) for component in COMPONENTS[1:]}
            plan[COMPONENTS[1].name] = Treatment("prune", 0.25, rows=(0.0, 0.5, 0.25, 0.25))
            write_plan(plan, tmp_path / "plan.json")
        return installed().schedules[name](**options)


def test_nothing_installed_fails_to_load() -> None:
    assert installed().failures == []


def test_suites_are_not_collected_on_their_own(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    suites = "CompressorContract, MetricContract, ScheduleContract"
    (tmp_path / "test_empty.py").write_text(f"from compressor.testing import {suites}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_empty.py"]
    done = run_project(command, tmp_path)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout


def test_tiny_checkpoint_loads_and_is_the_same_for_one_seed(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    folders = [make_tiny_checkpoint(tmp_path / str(index), seed) for index, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.get_rng_state(), state)
    files = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1] != files[2]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
    ids = tokenizer("Ünï code\n").input_ids
    assert ids[0] == tokenizer.bos_token_id == 1 and tokenizer.decode(ids, skip_special_tokens=True) == "Ünï code\n"
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[0])
    said = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=0)[0, len(ids) :]
    assert len(said.unique()) > 4
