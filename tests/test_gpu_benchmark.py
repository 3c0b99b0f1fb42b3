"""The GPU checks run, here on a CPU and on few weights; their rows report failures and do not stop at them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compressor.settings import Device, DType
from tests.benchmarks import gpu
from tests.benchmarks.__main__ import main
from tests.benchmarks.gpu.case import Case
from tests.benchmarks.gpu.checks_exactness import check_engine, check_streaming, compare_with_cpu
from tests.benchmarks.gpu.checks_memory import check_correction, check_out_of_memory
from tests.benchmarks.gpu.checks_speed import check_forward, check_reference
from tests.benchmarks.gpu.models import SMALL_SHAPES, make_llama
from tests.benchmarks.gpu.runner import Result, run_checks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("llama")
    make_llama(folder, SMALL_SHAPES["0.1B"], torch.device("cpu"))
    return Case(folder, DType.bfloat16, Device.cpu, prefixes=2, batch=2, most_trials=2, samples_prefixes=False)


def test_exactness_is_checked(case: Case) -> None:
    results = [*check_engine(case), *check_streaming(case), *compare_with_cpu(case, "int8")]
    assert len(results) == 12
    assert all(result.passed for result in results), results


def test_memory_and_speed_are_checked(case: Case) -> None:
    results = [*check_reference(case), *check_forward(case, {"bfloat16": 1e12, "copy": 1e9}), *check_correction(case)]
    assert all(result.passed for result in results), results
    assert all(result.facts["seconds"] > 0 for result in results)
    (result,) = check_out_of_memory(case)
    assert result.passed is None and result.facts["model is whole"]  # a CPU cannot show it


def test_a_failing_check_is_a_row_and_the_next_one_runs() -> None:
    def fail() -> Iterator[Result]:
        yield Result(True, {"seconds": 1.0}, "before")
        raise ValueError("wrong")

    def measure_only() -> Iterator[Result]:
        yield Result(None)

    rows = list(run_checks([("first", fail), ("second", measure_only)], limit=60))
    assert [(row["check"], row["part"], row["passed"]) for row in rows] == [
        ("first", "before", True),
        ("first", "", False),
        ("second", "", None),
    ]
    assert rows[1]["facts"]["error"] == "ValueError: wrong" and __file__ in rows[1]["facts"]["where"]


def test_no_check_begins_after_the_limit() -> None:
    rows = list(gpu.measure(["--device", "cpu", "--small", "--limit", "0"]))
    assert len({row["check"] for row in rows}) == len(rows) > 80
    assert all(row["passed"] is None and "skipped" in row["facts"] for row in rows)


@pytest.mark.parametrize("passed", [True, None, False])
def test_the_exit_status_tells_of_a_failure(passed: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "measure", lambda arguments: iter([{"passed": passed}, {"passed": True}]))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu"])
    if passed is False:
        with pytest.raises(SystemExit, match="1"):
            main()
    else:
        main()


@pytest.mark.slow
def test_the_script_runs_from_a_checkout() -> None:
    done = subprocess.run(
        ["bash", "tests/benchmarks/gpu/run.sh", "--device", "cpu", "--small", "--limit", "0"], cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {json.loads(line)["check"] for line in done.stdout.splitlines()}
    assert "device against CPU: int8" in names  # so plugins were found
