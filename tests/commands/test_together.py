"""Two processes, started together by `accelerate launch`, train what one process trains."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.slow import rarely
from tests.support.two_processes import run_two

OPTIONS = (
    "run", "model=hf", "schedule=uniform", "metric=[fdtm,kl]", "tracking=none",
    "export.verify=false", "data.prefixes=4", "data.prefix_tokens=8", "data.continuation_tokens=8", "recovery=finetune",
    "recovery.steps=12", "recovery.released=2", "recovery.batch=5", "recovery.windows=16", "recovery.tokens=12",
    "recovery.learning_rate=0.003",
)  # fmt: skip
LAUNCH = (
    "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
    "--dynamo_backend=no", "--main_process_port=0", "--module", "compressor.commands.entry",
)  # fmt: skip


PRUNED = ("schedule.targets=[0.4,0.7]",)
QUANTIZED = ("compressor=int4", "compressor.int4.group=4", "schedule.targets=[0.875]")


def start(folder: Path, options: Sequence[str], *launcher: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, *OPTIONS, *options, "model.path=base", f"hydra.run.dir={folder.name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("options", [PRUNED, QUANTIZED])
def test_two_processes_train_what_one_trains(options: Sequence[str], tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path / "base", with_tokenizer=True)
    one = start(tmp_path / "one", options, "-m", "compressor.commands.entry")
    two = start(tmp_path / "two", options, *LAUNCH)
    assert (one.returncode, two.returncode) == (0, 0), two.stderr[-2000:]
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("one", "two")]
    assert plans[0] == plans[1]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor == 0, weights[1][name] == 0), f"another mask of {name}"
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob("outputs")), "the second process wrote something of its own"


STOPPED = """
import os, signal
from compressor.commands.entry import main
from compressor.recovery.run_trainer import RunTrainer

pause = RunTrainer.pause
def stop_and_pause(self, is_good, done, *others):
    if done == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    pause(self, is_good, done, *others)

RunTrainer.pause = stop_and_pause
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [PRUNED, QUANTIZED])
def test_two_processes_that_are_stopped_go_on_to_the_same_weights(options: Sequence[str], tmp_path: Path) -> None:
    """The moments of both are saved, and each gets its own again."""
    save_checkpoint("llama", tmp_path / "base", with_tokenizer=True)
    arguments = [*OPTIONS, *options, "model.path=base"]
    whole = run_two(tmp_path, "-m", "compressor.commands.entry", *arguments, "hydra.run.dir=whole")
    stopped = run_two(tmp_path, "-c", STOPPED, *arguments, "hydra.run.dir=stopped")
    assert [each.returncode for each in whole + stopped] == [0, 0, 143, 0], stopped[0].stderr
    assert not (tmp_path / "stopped/plan.json").exists()
    resumed = run_two(tmp_path, "-m", "compressor.commands.entry", "resume", "stopped")
    assert [each.returncode for each in resumed] == [0, 0], resumed[0].stderr
    for name in ("plan.json", "sequences.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name


@pytest.mark.parametrize("count", ["many", *rarely(["9" * 5000])])
def test_a_number_of_processes_that_is_none_is_one_line(count: str, tmp_path: Path) -> None:
    done = call_command(tmp_path, "run", "schedule=uniform", WORLD_SIZE=count)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"error: WORLD_SIZE must be the number of processes, got {count!r:.80}; start them by a launcher"
    )


def test_processes_that_do_not_find_each_other_are_one_line(tmp_path: Path) -> None:
    done = call_command(tmp_path, "run", "schedule=uniform", WORLD_SIZE="2")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: WORLD_SIZE is 2, and the processes do not find each other (")
    assert done.stderr.endswith("); start them by `accelerate launch` or torchrun\n")
