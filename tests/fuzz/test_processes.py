"""Bad input to `compressor run` in fresh processes: success, or one line and status 1, and nothing half-written."""

import json
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from compressor.artifacts.run_status import DONE, read_status
from tests.support.command_line import call_fresh_command
from tests.support.damage import damage_model, damaged_models, damaged_texts, odd_command_lines
from tests.support.families import save_checkpoint

SHORT = (
    "schedule=uniform", "schedule.targets=[0.5]", "metric=[fdtm,kl]", "tracking=none", "data.prefixes=2",
    "data.prefix_tokens=4", "data.continuation_tokens=4", "export.verify=false", "hydra.run.dir=out",
)  # fmt: skip
EXAMPLES = 34
PLAN = {"model.layers.0.mlp.up_proj": {"compressor": "magnitude", "amount": 0.5, "options": {}}}


def can_be_arguments(line: list[str]) -> bool:
    """Whether a system can start a process with these arguments."""
    return not any("\0" in part or any("\ud800" <= letter < "\udc80" for letter in part) for part in line)


def assert_done_or_one_line(folder: Path, *arguments: str) -> None:
    done = call_fresh_command(folder, "run", *arguments)
    assert done.returncode in (0, 1), (arguments, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    if done.returncode == 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
    if (out := folder / "out").is_dir():
        assert (read_status(out).get("status") == DONE) == (done.returncode == 0)
        assert (out / "model").is_dir() == (done.returncode == 0)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["line", "model", "plan"])
def test_bad_input_to_a_process(kind: str, tmp_path: Path) -> None:
    whole = save_checkpoint("llama", tmp_path / "whole", with_tokenizer=True, shard_size="60KB")
    kinds: dict[str, st.SearchStrategy[object]] = {
        "line": odd_command_lines().filter(can_be_arguments),
        "model": damaged_models(whole),
        "plan": damaged_texts(PLAN),
    }
    tried = 0

    # Shrinking would start hundreds of processes.
    @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate])
    @given(drawn=kinds[kind])
    def check(drawn: object) -> None:
        nonlocal tried
        tried += 1
        folder = tmp_path / str(tried)
        folder.mkdir()
        if kind == "line":
            assert_done_or_one_line(folder, *SHORT, *drawn)  # type: ignore[misc]
            return
        model, arguments = whole, list(SHORT)
        if kind == "model":
            damage_model(whole, model := folder / "model", drawn)  # type: ignore[arg-type]
        else:
            (folder / "plan.json").write_bytes(drawn)  # type: ignore[arg-type]
            arguments[:2] = ["schedule=plan", "schedule.path=plan.json"]
        assert_done_or_one_line(folder, "model=hf", f"model.path={json.dumps(str(model))}", *arguments)

    check()
