"""Names of runs say what differs; jobs of a multirun share a group."""

from pathlib import Path

import pytest

from compressor.tracking.run_label import LONGEST, RunLabel, make_label

SWEEP = Path("multirun/2026-02-03_04-05-06")


@pytest.mark.parametrize(
    ("overrides", "varied", "name"),
    [
        (["seed=1", "model.path=/data/llama", "+compressor.rtn.bits=4"], {"seed", "compressor.rtn.bits"}, None),
        (["seed=1", "schedule=uniform"], set(), "seed=1 schedule=uniform"),
        ([], set(), "budget"),
    ],
)
def test_the_name_of_a_job_is_what_differs(overrides: list[str], varied: set[str], name: str | None) -> None:
    expected = RunLabel(name or "seed=1 +compressor.rtn.bits=4", "multirun/2026-02-03_04-05-06")
    assert make_label(overrides, varied, "budget", SWEEP) == expected


def test_a_single_run_is_named_by_its_overrides_and_has_no_group() -> None:
    assert make_label(["schedule=uniform", "seed=3"], (), "uniform", None) == RunLabel("schedule=uniform seed=3")
    assert make_label([], (), "budget", None) == RunLabel("budget")


@pytest.mark.parametrize("path", ["/data/models/llama", "~/models/llama", "../llama", "'/data/models/llama'"])
def test_of_a_path_only_the_last_part_is_in_the_name(path: str) -> None:
    overrides = [f"model.path={path}", "data.name=org/text"]
    assert make_label(overrides, (), "budget", None).name == "model.path=llama data.name=org/text"


def test_names_and_groups_are_no_longer_than_wandb_takes() -> None:
    label = make_label([f"seed={'1' * 200}"], (), "budget", Path("a" * 200))
    assert label.group is not None
    assert (len(label.name), len(label.group)) == (LONGEST, LONGEST)
