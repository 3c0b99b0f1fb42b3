"""Where a forecast leads: its commands make what its points say."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.artifacts.forecast_record import ForecastRecord, PointForecast
from compressor.artifacts.plan_file import read_plan
from compressor.commands.checked_overrides import complete_overrides
from compressor.commands.config import open_hydra, store_schemas
from compressor.commands.next_command import add_commands, choose_point
from compressor.contracts import Dialogue, KeepRequest, Treatment
from compressor.errors import ConfigError, PlanError
from compressor.plugins import installed
from compressor.testing.problems import make_problem
from compressor_plugins.schedules.plan import ReplayedPlan
from tests.support.command_line import call_command

FEW = [
    "data.prefixes=4",
    "data.prefix_tokens=6",
    "data.continuation_tokens=8",
    "components.include=[layers.0.self_attn]",
]
NAME = "model.layers.0.self_attn.q_proj"


@pytest.mark.slow
def test_the_command_that_is_printed_makes_the_point(tmp_path: Path) -> None:
    done = call_command(tmp_path, "forecast", *FEW, "compressor.int4.group=16", "hydra.run.dir=first look")
    assert (done.returncode, done.stderr) == (0, "")
    line = done.stdout.splitlines()[-1]
    assert line.startswith("to make the row of ")
    command = line.partition(": ")[2]
    found = json.loads((tmp_path / "first look" / "forecast.json").read_text())
    (point,) = [point for point in found["curve"] if point.get("command") == command]
    assert shlex.split(command)[-3:-1] == ["schedule=plan", "schedule.path='first look/forecast.json'"]
    made = call_command(
        tmp_path, *shlex.split(command)[1:], "metric=[fdtm,kl]", "export.verify=false", "tracking=none",
        "hydra.run.dir=out",
    )  # fmt: skip
    assert (made.returncode, made.stderr) == (0, "")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["final"]["amount"] == pytest.approx(point["amount"])
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == point["plan"]
    assert report["config"]["data"]["prefixes"] == 4
    for name, points in found["curves"].items():
        for alone in points[1:]:
            words = shlex.split(alone["command"])
            assert f"compressor={name}" in words and words[-1].startswith("schedule.targets=[")
            assert ("compressor.int4.group=16" in words) == (name == "int4")
    assert "command" not in found["curve"][0]


def make_point(amount: float, fdt: float, trusted: bool = True, plan: Any = None) -> PointForecast:  # noqa: ANN401
    return PointForecast(amount, 9.0, 4.0, 0.1, fdt, fdt, fdt, trusted, {}, {NAME: {}} if plan is None else plan)


CONFIG: dict[str, Any] = {
    "model": {"path": "a folder/it's", "dtype": "bfloat16", "revision": None},
    "data": {"source": "text", "path": "my.txt", "prefixes": 64, "seed": 3},
    "components": {"include": [r"mlp\."], "exclude": [], "fuse": True},
    "compressor": {"int4": {"group": 64, "symmetric": True, "clip": False}, "magnitude": {}},
    "schedule": {"name": "fdt_allocation"},
    "tracking": {"backend": "none", "mode": "auto", "project": "mine"},
    "sweep": {"mode": "exact", "batch": 8},
    "forecast": {"check": 2},
    "export": {"format": "auto", "gguf": True, "verify": True},
    "seed": 7,
}


def test_a_command_says_what_differs_from_the_defaults_and_composes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("once")
    (tmp_path / "a folder" / "it's").mkdir(parents=True)
    record = ForecastRecord(CONFIG, {}, curve=[make_point(0.0, 16, plan={}), make_point(1 / 3, 9)])
    record.curves = {"int4": [make_point(0.74996, 5)]}
    record.curves["int4"][0].plan = None
    add_commands(record, tmp_path / "out", installed())
    assert record.curve[0].command is None
    shared = [
        "compressor", "run", "model=hf", r"model.path='a folder/it\'s'", "model.dtype=bfloat16", "data=text",
        "data.path=my.txt", "data.seed=3", r"components.include=[mlp\.]", "components.fuse=true", "sweep.batch=8",
        "tracking.project=mine", "export.gguf=true", "seed=7",
    ]  # fmt: skip
    plan, alone = (shlex.split(point.command or "") for point in (record.curve[1], record.curves["int4"][0]))
    path = "schedule.path=out/forecast.json"  # from the working directory
    assert plan == [*shared, "schedule=plan", path, "schedule.amount=0.3333"]
    assert alone == [
        *shared, "compressor=int4", "compressor.int4.group=64", "schedule=fdt_allocation", "schedule.targets=[0.7499]",
    ]  # fmt: skip
    (tmp_path / "out").mkdir()
    found = {"amount": 1 / 3, "plan": {NAME: {"compressor": "int4", "amount": 0.75}}}
    (tmp_path / "out" / "forecast.json").write_text(json.dumps({"curve": [found]}))
    plugins = installed()
    store_schemas(plugins)
    with open_hydra():
        _, composed = complete_overrides(plan[2:], plugins)
        complete_overrides(alone[2:], plugins)
    assert composed.model.path == CONFIG["model"]["path"] and list(composed.components.include) == [r"mlp\."]


def test_the_point_to_begin_with_is_the_smallest_that_half_of_the_text_survives() -> None:
    record = ForecastRecord({}, {}, base={"expected_fdtm": 16.0})
    record.curve = [make_point(0.0, 16, plan={}), *(make_point(a, f) for a, f in ((0.2, 14), (0.4, 9), (0.6, 7)))]
    add_commands(record, Path("out"), installed())
    assert choose_point(record) is record.curve[2]
    record.curve = [replace(point, trusted=point.amount == 0.6) for point in record.curve]
    assert choose_point(record) is record.curve[3]
    record.curve = record.curve[:1]
    assert choose_point(record) is None


def write_forecast(folder: Path) -> Path:
    curve = [make_point(0.0, 16, plan={})]
    curve += [make_point(amount, 9, plan={NAME: {"compressor": "prune", "amount": amount}}) for amount in (0.2504, 0.6)]
    path = folder / "forecast.json"
    path.write_text(json.dumps(ForecastRecord({}, {}, curve=curve).to_json()))
    return path


@pytest.mark.parametrize(("amount", "expected"), [(0.25, 0.2504), (0.2504, 0.2504), (0.2509, 0.2504), (0.6, 0.6)])
def test_a_point_is_found_by_the_amount_that_a_table_shows(amount: float, expected: float, tmp_path: Path) -> None:
    assert read_plan(write_forecast(tmp_path), amount=amount) == {NAME: Treatment("prune", expected)}
    schedule = ReplayedPlan(str(tmp_path / "forecast.json"), amount=amount)
    request = Dialogue(schedule, make_problem(["prune"], {})).propose()
    assert isinstance(request, KeepRequest) and request.plan == {NAME: Treatment("prune", expected)}


def test_what_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    path = write_forecast(tmp_path)
    with pytest.raises(
        PlanError, match=r"it has no point of amount 0\.4, the nearest are 0\.2504 and 0\.6; choose one"
    ):
        read_plan(path, amount=0.4)
    with pytest.raises(PlanError, match=r"it is a forecast with a plan for every size; choose one by schedule\.am"):
        read_plan(path)
    with pytest.raises(PlanError, match=r"it has no curve of a search"):
        read_plan(path, depth=3)
    other = tmp_path / "plan.json"
    for text in (
        "{}",
        "[]",
        '{"curve": 3}',
        '{"curve": [{"amount": 0.5}]}',
        '{"curve": [{"amount": "a", "plan": {}}]}',
    ):
        other.write_text(text)
        with pytest.raises(PlanError, match=r"it has no curve of a forecast; give the forecast\.json of"):
            read_plan(other, amount=0.5)
    other.write_text('{"curve": []}')
    with pytest.raises(PlanError, match="the nearest are none"):
        read_plan(other, amount=0.5)
    other.write_text('{"status": "done", "rounds": []}')
    with pytest.raises(
        PlanError, match=r"it is the report of a run; give the plan\.json beside it, or schedule\.depth"
    ):
        read_plan(other)
    with pytest.raises(ConfigError, match=r"give only one of `schedule\.depth` .*, got 3 and 0\.5; drop one"):
        Dialogue(ReplayedPlan(str(path), depth=3, amount=0.5), make_problem(["prune"], {}))
