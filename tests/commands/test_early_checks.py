"""Settings are checked before torch is imported, and what has no effect is said."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_origin, get_type_hints

import pytest
import yaml  # type: ignore[import-untyped]

from compressor.artifacts.plan_file import write_plan
from compressor.commands.early_checks import DEFAULT_COMPRESSOR, check_settings, list_ineffective, list_unneeded
from compressor.contracts import KeepRequest, Treatment
from compressor.errors import CompressorError, ConfigError
from compressor.plugins import installed
from compressor.settings import (
    CalibrationWeights,
    ComponentSettings,
    DataSettings,
    DataSource,
    ExportSettings,
    MemorySettings,
    ModelSettings,
    Settings,
    SweepMode,
    SweepSettings,
    TrackingBackend,
    TrackingSettings,
)
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.selection import Scope
from compressor_plugins.pruning.wanda import Wanda
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.quantization.nf4 import Nf4
from compressor_plugins.recovery.least_squares import LeastSquares
from compressor_plugins.schedules.budget.budget import Budget
from compressor_plugins.schedules.plan import ReplayedPlan
from tests.support.command_line import call_command
from tests.support.slow import rarely

SMALL = (
    "schedule=uniform", "data.prefixes=2", "data.prefix_tokens=4", "data.continuation_tokens=4", "tracking=none",
    "metric=[fdtm]", "components.include=[layers.0.self_attn]",
)  # fmt: skip
CONF = Path(__file__).parents[2] / "conf"
REFUSE = """
import sys
from compressor.commands.results_place import choose_place
from compressor.commands.config import store_schemas
from compressor.errors import CompressorError
from compressor.plugins import installed
store_schemas(installed())
for line in sys.argv[1:]:
    try:
        choose_place(line.split(), installed())
        print("taken:", line)
    except CompressorError as error:
        print(error, "torch" in sys.modules)
"""
WRONG = """
model.path=/nowhere
data=text
data=text data.path=/nowhere.txt
sweep.batch=9223372036854775808
compressor=magnitude schedule.bytes=2000000
compressor=nf4 schedule.size=50%
compressor=int8 schedule.size=50% export=dense
compressor=magnitude schedule=beam schedule.amount=0.5 schedule.bits=4
schedule.size=half
schedule.size=50% schedule.bits=4
schedule.bytes=0
schedule.targets=[0.5,0.2]
schedule.objective=fdtm
schedule.objective=nothing
schedule.corrections=-1
schedule.granularity=row schedule.estimate=measured
compressor=[magnitude,int8] schedule=uniform
compressor=int8 schedule=global
schedule=plan
schedule=plan schedule.path=none.json
schedule=beam schedule.width=0
schedule=beam schedule.count=0
schedule=evolution schedule.step=2
compressor=int4 compressor.int4.group=0
compressor=rtn compressor.rtn.bits=[1]
compressor=magnitude compressor.magnitude.pattern=3
metric=perplexity metric.perplexity.stride=0
metric=perplexity metric.perplexity.path=none.txt
metric=margin_noise metric.margin_noise.closeness=0
metric=expected_fdtm metric.expected_fdtm.runners=0
components.include=['(']
memory.host=much
memory.host=inf
export.format=zip
schedule.bits=nan
schedule.bits=1e308
schedule=beam schedule.amount=inf
schedule=plan schedule.path=none.json schedule.amount=-1
schedule=plan schedule.path=none.json schedule.depth=0
metric=margin_noise metric.margin_noise.closeness=inf
metric=perplexity metric.perplexity.window=1000000000000000000000
compressor=llm_int8 compressor.llm_int8.threshold=inf
compressor=gptq compressor.gptq.block=1000000000000000000000
sweep.screen=fdtm
data=text data.path=/dev/zero
metric=perplexity metric.perplexity.path=/dev/zero
recovery=finetune recovery.path=/dev/zero
recovery=[finetune,reconstruct]
schedule=[budget,uniform]
schedule=plan schedule.targets=[0.5]
resume.accept=[thread]
""".strip().splitlines()
"""What fits no model."""


def make(**changes: object) -> Settings:
    chosen: dict[str, Any] = {"metric": {}, "compressor": {"magnitude": Magnitude()}, "schedule": Budget()}
    return Settings(**(chosen | changes))


@pytest.mark.parametrize(
    "lines",
    [WRONG[::4], *rarely([[line for index, line in enumerate(WRONG) if index % 4]])],
    ids=["every fourth", "the others"],
)
def test_a_mistake_is_told_before_torch_is_imported_and_leaves_nothing(lines: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", REFUSE, *lines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == len(lines) and all(line.endswith(" False") for line in said), done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataSettings(source=DataSource.hf)}, "`data=hf` needs `data.name`"),
        ({"data": DataSettings(source=DataSource.text)}, "`data=text` needs `data.path`"),
        ({"data": DataSettings(prefixes=0)}, "`data.prefixes` must be at least 1, got 0"),
        ({"data": DataSettings(prefixes=2**40)}, "`data.prefixes` must be at most 2147483647"),
        ({"seed": 2**63}, "`seed` must be at most"),
        ({"model": ModelSettings(path="")}, "`model.path` is needed"),
        (
            {"schedule": Budget(bytes=2_000_000)},
            r"`schedule.bytes=2000000` cannot be reached: magnitude only prunes: pruned weights are stored dense and "
            r"keep their size; use compressor=\[int8,int4\], or schedule.targets in place of a size",
        ),
        (
            {"schedule": Budget(size="50%"), "compressor": {"nf4": Nf4(), "magnitude": Magnitude()}},
            "the export saves the weights of nf4, magnitude dense, so the files keep their size",
        ),
        (
            {"schedule": Budget(size="50%"), "export": ExportSettings(format="dense")},
            "`schedule.size` limits the weight files, and `export.format=dense` saves every weight dense",
        ),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CompressorError, match=message):
        check_settings(make(**changes), installed())


def list_wrong_numbers(cls: type, make_settings: Callable[[Any], Settings]) -> Iterator[tuple[str, Settings]]:
    """Each number among the options of a class, and settings in which it is infinite, not a number, or too large."""
    for field, kind in get_type_hints(cls).items():
        words = re.findall(r"\w+", str(kind))
        values = [math.inf, -math.inf, math.nan] if "float" in words else [10**30, 10**400] if "int" in words else []
        for value in values if get_origin(kind) is not ClassVar else ():
            yield field, make_settings(cls(**{field: [value] if "list" in words else value}))


def test_no_number_is_infinite_or_larger_than_any_machine() -> None:
    plugins = installed()
    makers: list[tuple[type, Callable[[Any], Settings]]] = [
        *((cls, lambda one, name=name: make(metric={name: one})) for name, cls in plugins.metrics.items()),
        *((cls, lambda one, name=name: make(compressor={name: one})) for name, cls in plugins.compressors.items()),
        *((cls, lambda one: make(schedule=one, compressor={"int8": Int8()})) for cls in plugins.schedules.values()),
        (DataSettings, lambda one: make(data=one)),
        (SweepSettings, lambda one: make(sweep=one)),
        (MemorySettings, lambda one: make(memory=one)),
    ]
    wrong = [found for cls, make_settings in makers for found in list_wrong_numbers(cls, make_settings)]
    assert len(wrong) > 60
    for field, settings in wrong:
        with pytest.raises(CompressorError) as caught:
            check_settings(settings, plugins)
        assert field in str(caught.value) or "schedule.path" in str(caught.value), field
        assert len(str(caught.value)) < 700


def test_every_setting_without_effect_is_said(tmp_path: Path) -> None:
    assert not list(list_ineffective(make()))
    weighted = DataSettings(calibration=CalibrationWeights.margins)
    for needing in ({"compressor": {"wanda": Wanda()}}, {"recovery": LeastSquares()}, {"schedule": ReplayedPlan("a")}):
        assert not list(list_ineffective(make(data=weighted, **needing)))
    assert not list(list_ineffective(make(sweep=SweepSettings(mode=SweepMode.approximate, screen="kl", audit=1))))
    found = list(
        list_ineffective(
            make(
                data=replace(weighted, path="a", name="b", subset="c", split="d", column="e"),
                model=ModelSettings(path=str(tmp_path), revision="main"),
                sweep=SweepSettings(screen="kl", delta=0.1, lazy=False, tolerance=0.1, audit=1, racing=True),
                compressor={"magnitude": Magnitude(Scope.row, "2:4")},
                tracking=TrackingSettings(TrackingBackend.none, project="mine"),
            )
        )
    )
    assert len(found) == 15
    assert "`data.path` has no effect with data=self; add data=text, or leave it out" in found
    assert found[-1] == "`compressor.magnitude.scope` has no effect with `pattern`; leave one of the two out"


def test_what_a_plan_from_a_file_makes_needless_is_said(tmp_path: Path) -> None:
    plan = {"a": Treatment("int8", 0.5), "b": Treatment("int4", 0.75, {"group": 32}), "c": Treatment("magnitude", 0.5)}
    last = KeepRequest(plan, last=True)

    def say(request: object = last, **changes: object) -> list[str]:
        chosen = {"schedule": ReplayedPlan(path="plan.json"), "compressor": {"magnitude": Magnitude()}} | changes
        return list(list_unneeded(make(**chosen), request))

    assert not say() and not say(compressor={"int8": Int8()}) and not say(KeepRequest(plan))
    assert not say(KeepRequest({}, last=True))  # nobody has chosen the default
    assert say(compressor={"int8": Int8(), "int4": Int4(), "nf4": Nf4()}) == [
        "`compressor=int4` has no effect with schedule=plan, whose plan brings its own options of int4; leave it out",
        "`compressor=nf4` has no effect with schedule=plan, whose plan does not treat anything by nf4; leave it out",
    ]
    assert len(say(KeepRequest({}, last=True), compressor={"magnitude": Magnitude(Scope.row)})) == 1
    others = {"sweep": SweepSettings(mode=SweepMode.approximate), "components": ComponentSettings(fuse=True)}
    assert [line.partition(" has no effect with schedule=plan, ")[0] for line in say(**others)] == [
        "`sweep.mode=approximate`",
        "`components.fuse`",
    ]
    assert not say(KeepRequest(plan), **others)
    (configured,) = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"][4].values()
    assert configured == [DEFAULT_COMPRESSOR]
    write_plan({"model.layers.0.self_attn.q_proj": Treatment("magnitude", 0.5)}, tmp_path / "plan.json")
    line = ("schedule=plan", "schedule.path=plan.json", "compressor=int8", *SMALL[1:], "hydra.run.dir=out")
    done = call_command(tmp_path, "run", *line, "export.verify=false")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "WARNING: `compressor=int8` has no effect with schedule=plan, whose plan does not treat anything by int8; "
        "leave it out"
    ]


@pytest.mark.parametrize("given", ["no", "-1", "1e9", "9" * 5000])
def test_a_limit_of_the_cache_that_is_none_is_told_at_once(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_CACHE_BYTES", given)
    with pytest.raises(ConfigError, match=f"`COMPRESSOR_CACHE_BYTES` must be a number of bytes, got '{given[:50]}"):
        check_settings(make(), installed())
    check_settings(make(sweep=SweepSettings(cache=False)), installed())


def test_a_run_says_what_has_no_effect(tmp_path: Path) -> None:
    ineffective = ("forecast.check=2", "data.path=a.txt", "model.revision=main", "export.verify=false")
    done = call_command(tmp_path, "run", *SMALL, *ineffective, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    for key in ("forecast.check", "data.path", "model.revision"):
        assert sum(f"`{key}` has no effect" in line for line in done.stderr.splitlines()) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["reference"]["source"] == "sampled from the base"
