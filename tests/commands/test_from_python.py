"""`compressor.run` and `compressor.forecast`: real runs on tiny models, from a script and from a notebook."""

import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

import compressor
from compressor.artifacts.plan_file import read_plan
from compressor.artifacts.run_record import Record
from compressor.commands.from_python import one_at_a_time, prepare
from compressor.commands.overrides import quote, write_overrides, write_value
from compressor.commands.setting_types import read_settings
from compressor.errors import ConfigError
from compressor.report import read_report
from compressor.settings import (
    ComponentSettings,
    DataSettings,
    DType,
    ExportSettings,
    ModelSettings,
    Settings,
    TrackingSettings,
)
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.schedules.uniform import Uniform
from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.warm_processes import run_project

SMALL: dict[str, Any] = {
    "data": {"prefixes": 4, "prefix_tokens": 6, "continuation_tokens": 8},
    "metric": ["fdtm", "kl"],
    "tracking": "none",
    "components": {"include": [r"layers\.0\.self_attn"]},
    "export": {"verify": False},
}
GROUPS = ("model", "data", "metric", "compressor", "schedule", "export", "tracking")


def test_a_run_gives_a_record_that_knows_its_folder(tmp_path: Path) -> None:
    result = compressor.run(schedule={"name": "uniform", "targets": [0.3]}, folder=tmp_path / "out", **SMALL)
    assert result.folder == tmp_path / "out"
    assert result.final is not None and result.final.amount == pytest.approx(0.3, abs=1e-3)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["status"] == result.status == "done"
    assert report["config"]["schedule"] == {"name": "uniform", "targets": [0.3]}
    assert report["config"]["components"]["include"] == [r"layers\.0\.self_attn"]
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert result.to_json() == read_report(tmp_path / "out").to_json()
    assert repr(result) == f"<run done in {tmp_path / 'out'}>"


def test_two_runs_in_one_process_are_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder, and within one second, each has a dated folder of its own; its config repeats it."""
    monkeypatch.chdir(tmp_path)
    first = compressor.run({"schedule.targets": [0.3], "schedule.corrections": 1}, **SMALL)
    second = compressor.run(**first.config)
    third = compressor.run({"schedule": {"targets": [0.3], "corrections": 1}}, **SMALL)
    folders = {result.folder for result in (first, second, third)}
    assert len(folders) == 3 and {folder.parent for folder in folders} == {tmp_path / "outputs"}
    assert first.config == second.config == third.config
    plans = [read_plan(result.folder / "plan.json") for result in (first, second, third)]
    assert plans[0] == plans[1] == plans[2]
    assert first.final is not None and second.final is not None and first.final.scores == second.final.scores


@pytest.mark.slow
def test_the_command_in_the_record_does_the_same(tmp_path: Path) -> None:
    """Names with spaces and quotes, regular expressions and texts that look like numbers come through as they are."""
    base = save_checkpoint("llama", tmp_path / "it's a $base", with_tokenizer=True)
    options = SMALL | {"model": {"path": base, "revision": "1e3"}, "schedule": {"size": "95%", "corrections": 0}}
    result = compressor.run(folder=tmp_path / "out", **options)
    words = [*_split(result.command), f"hydra.run.dir={quote(str(tmp_path / 'again'))}"]
    assert words[:2] == ["compressor", "run"]
    done = call_command(tmp_path, *words[1:])
    assert done.returncode == 0
    assert (
        done.stderr.startswith("WARNING: `model.revision` has no effect on a local folder")
        and done.stderr.count("\n") == 1
    )
    again = read_report(tmp_path / "again")
    assert again.config == result.config
    assert again.config["model"]["path"] == str(base) and again.config["model"]["revision"] == "1e3"
    assert read_plan(tmp_path / "again" / "plan.json") == read_plan(tmp_path / "out" / "plan.json")


def _split(command: str) -> list[str]:
    import shlex

    return shlex.split(command)


def test_a_size_halves_the_weight_files(tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 160}
    base = save_checkpoint("llama", tmp_path / "base", with_tokenizer=True, **wide)
    options = SMALL | {"components": {"include": []}}
    result = compressor.run({"model.path": base, "schedule.size": "50%"}, folder=tmp_path / "out", **options)
    assert set(result.config["compressor"]) == {"int8", "int4"}
    before, after = (sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in (base, tmp_path / "out" / "model"))
    assert 0 < after <= before / 2


def test_settings_are_taken_as_they_are(tmp_path: Path) -> None:
    settings = Settings(
        metric={"fdtm": Fdtm()},
        compressor={"magnitude": Magnitude()},
        schedule=Uniform([0.4]),
        data=DataSettings(prefixes=4, prefix_tokens=6, continuation_tokens=8),
        components=ComponentSettings(include=[r"layers\.0\.self_attn"]),
        tracking=TrackingSettings(backend="none"),
        export=ExportSettings(verify=False),
    )
    result = compressor.run(settings, folder=tmp_path / "out")
    assert result.final is not None and result.final.amount == pytest.approx(0.4, abs=1e-3)
    assert result.config["schedule"] == {"name": "uniform", "targets": [0.4]}
    assert result.config["recovery"] is None
    repeated = compressor.run(**result.config, folder=tmp_path / "again")
    assert repeated.final is not None and repeated.final.scores == result.final.scores
    with pytest.raises(compressor.CompressorError, match="give a Settings object or options, not both; got `seed`"):
        compressor.run(settings, seed=1)
    with pytest.raises(compressor.CompressorError, match="already holds a finished run"):
        compressor.run(settings, folder=tmp_path / "out")
    forecast = compressor.forecast(replace(settings, schedule=Uniform()), folder=tmp_path / "forecast")
    assert forecast.curve and (tmp_path / "forecast" / "forecast.html").is_file()


def test_a_forecast_leads_to_a_run(tmp_path: Path) -> None:
    forecast = compressor.forecast(folder=tmp_path / "forecast", **SMALL)
    assert set(forecast.config["compressor"]) == {"magnitude", "int8", "int4"}
    found = json.loads((tmp_path / "forecast" / "forecast.json").read_text())
    assert found["curve"] == json.loads(json.dumps(forecast.to_json()["curve"])) and "folder" not in found
    assert repr(forecast) == f"<forecast of {len(forecast.curve)} sizes in {tmp_path / 'forecast'}>"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"modle": "hf"}, "unknown key `modle`; did you mean `model`?"),
    ({"model": "tny"}, "unknown model `tny`; did you mean `tiny`?"),
    ({"schedule": "unifrm"}, "unknown schedule `unifrm`; did you mean `uniform`"),
    ({"schedule": {"sise": "50%"}}, "unknown key `schedule.sise`; did you mean `schedule.size`"),
    ({"compressor": ["int9"]}, "unknown compressor `int9`; did you mean `int"),
    ({"compressor": {"int8": {"grup": 3}}}, "unknown key `compressor.int8.grup`; did you mean `compressor.int8.group`"),
    ({"compressor": {"group": 3}}, "`compressor` must be a name, a list of names or {name: {option: value}}, got 3"),
    ({"compressor": Magnitude()}, "`compressor` must be a number, a text, a list of these or None, got Magnitude"),
    ({"data": {"prefixes": "many"}}, "`data.prefixes` must be a whole number, got 'many'"),
    ({"seed": [{"a": 1}]}, "`seed` must not hold a mapping in a list"),
    ({"model": "hf"}, "`model.path`"),
    ({"schedule": {"size": "half"}}, "`schedule.size` must be a percentage or a number of bytes with a unit"),
]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        *((compressor.run, *mistake) for mistake in WRONG),
        *((compressor.forecast, *mistake) for mistake in WRONG[:2]),  # both commands check options by one function
        (compressor.forecast, {"schedule": {"size": "half"}}, "a forecast has a plan for every size"),
        *(pytest.param(compressor.forecast, *mistake, marks=pytest.mark.slow) for mistake in WRONG[2:-1]),
    ],
)
def test_mistakes_are_one_line(command: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:  # noqa: ANN401
    with pytest.raises(compressor.CompressorError, match=re.escape(message)) as caught:
        command(folder=tmp_path / "out", **{**SMALL, **options})
    assert str(caught.value).isprintable()
    assert not GlobalHydra.instance().is_initialized()


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"out"


def contain_itself(holder: Any) -> Any:  # noqa: ANN401 - a mapping or a list
    holder.append(holder) if isinstance(holder, list) else holder.update(a=holder)
    return holder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folder": 3}, "`folder` must be a path, got 3; give a text or a pathlib.Path"),
        ({"folder": b"out"}, "`folder` must be a path, got b'out'"),
        ({"folder": BytesPath()}, "`folder` must be a path, got <"),
        (
            {"progress": "yes"},
            "`progress` must be True, False or an object with the methods `track` and `say`, got 'yes'",
        ),
        ({"progress": 1}, "`progress` must be True, False or an object with the methods `track` and `say`, got 1"),
        (
            {"data": contain_itself({})},
            "`data` has more than 20 levels of values in values, and may not contain itself",
        ),
        ({"metric": contain_itself([])}, "`metric` has more than 20 levels of values in values"),
        ({"data": {1: 2}}, "the name of an option must be a text, got 1 in `data.1`; correct it"),
    ],
)
def test_arguments_of_another_type_are_one_line(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    for command in (compressor.run, compressor.forecast):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            command(**{"folder": tmp_path / "out", **arguments})
        assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": 3}, "`metric` must be {name: metric}, got 3; give names and objects"),
        ({"metric": {"fdtm": contain_itself({})}}, "{'a': {...}} is no metric; derive its class from Metric"),
        ({"compressor": [Magnitude()]}, "`compressor` must be {name: compressor}, got [Magnitude("),
        ({"compressor": {"magnitude": Magnitude}}, "is no compressor; derive its class from Compressor"),
        ({"compressor": {"magnitude": Magnitude(pattern=3)}}, "`compressor.magnitude.pattern` must be a text, got 3"),  # type: ignore[arg-type]
        ({"schedule": "uniform"}, "'uniform' is no schedule; derive its class from Schedule"),
        ({"schedule": Uniform("0.5")}, "`schedule.targets` must be a list, each a number, got '0.5'"),  # type: ignore[arg-type]
        ({"recovery": "finetune"}, "'finetune' is no recovery; derive its class from Recovery"),
        ({"model": "tiny"}, "`model` must be a ModelSettings, got 'tiny'; correct it or leave it out"),
        ({"model": ModelSettings(path=3)}, "`model.path` must be a text or None, got 3"),  # type: ignore[arg-type]
        ({"model": ModelSettings(device="gpu")}, "`model.device` must be one of auto, cpu, cuda, got 'gpu'"),  # type: ignore[arg-type]
        ({"data": contain_itself({})}, "`data` must be a DataSettings, got {'a': {...}}"),
        ({"data": DataSettings(seed=None)}, "`data.seed` must be a whole number, got None"),  # type: ignore[arg-type]
        ({"data": DataSettings(prefixes=True)}, "`data.prefixes` must be a whole number, got True"),
        ({"components": ComponentSettings(include=[3])}, "`components.include` must be a list, each a text, got [3]"),  # type: ignore[list-item]
        ({"seed": "0"}, "`seed` must be a whole number, got '0'"),
    ],
)
def test_settings_of_another_type_are_one_line(changes: dict[str, Any], message: str) -> None:
    settings = Settings({"fdtm": Fdtm()}, {"magnitude": Magnitude()}, Uniform())
    with pytest.raises(compressor.CompressorError, match=re.escape(message)) as caught:
        read_settings(replace(settings, **changes))
    assert str(caught.value).isprintable()


def test_choices_may_be_named_by_texts() -> None:
    settings = Settings(
        {"fdtm": Fdtm()},
        {},
        Uniform([1]),
        ModelSettings(dtype="float32"),
        DataSettings(seed=np.int64(3)),  # type: ignore[arg-type]
    )
    read = read_settings(settings)
    assert read.model.dtype is DType.float32 and settings.model.dtype == "float32"
    assert read == replace(settings, model=ModelSettings(dtype=DType.float32))


def test_options_are_given_once_and_as_a_mapping() -> None:
    with pytest.raises(compressor.CompressorError, match="`seed` is given twice"):
        compressor.run({"seed": 1}, seed=2)
    with pytest.raises(compressor.CompressorError, match=r"`data.prefixes` is given twice"):
        compressor.run({"data.prefixes": 3}, data={"prefixes": 4})
    for options in ({"hydra.run.dir": "x"}, {"hydra": {"run": {"dir": "x"}}}, {"hydra/launcher": "basic"}):
        with pytest.raises(
            compressor.CompressorError, match=r"^`hydra.*` is a setting of the command line; name the f"
        ):
            compressor.run(options)
    with pytest.raises(compressor.CompressorError, match="must be a mapping or a Settings object, got str"):
        compressor.run("model=hf")  # type: ignore[arg-type]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )
)
def test_any_value_is_read_back_as_it_was(value: object) -> None:
    """By Hydra's own parser, then by OmegaConf, which would put something in the place of ${…}."""
    from omegaconf import OmegaConf

    (override,) = OverridesParser.create().parse_overrides([f"key={write_value('key', value)}"])
    assert not override.is_sweep_override()
    read = OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True)
    assert read == {"key": value}


@pytest.mark.parametrize(
    "text", ["${a}", r"\${a}", r"\\${a}", "${", "a,b", "1e3", "null", "50%", "a b", "'", '"', "\\"]
)
def test_texts_that_mean_something_to_hydra_are_taken_literally(text: str) -> None:
    test_any_value_is_read_back_as_it_was.hypothesis.inner_test(text)  # type: ignore[attr-defined]
    test_any_value_is_read_back_as_it_was.hypothesis.inner_test([text, text])  # type: ignore[attr-defined]


def test_groups_are_chosen_and_keys_are_set() -> None:
    options = {
        "model": "hf",
        "data": {"seed": np.int64(1), "path": Path("a/b.txt")},
        "compressor": {"int8": {"group": 64}, "int4": {}},
        "metric": ["kl"],
        "schedule": {"name": "beam", "amount": np.float64(0.5)},
        "sweep.lazy": False,
        "export": {"format": "dense"},
    }
    assert list(write_overrides(options, GROUPS)) == [
        "model=hf", "data.seed=1", "data.path=a/b.txt", "compressor=[int8,int4]", "compressor.int8.group=64",
        "metric=[kl]", "schedule=beam", "schedule.amount=0.5", "sweep.lazy=false", "export.format=dense",
    ]  # fmt: skip


NOTEBOOK = """
import asyncio, sys
sys.argv = ["ipykernel_launcher.py", "-f", "kernel.json"]
import compressor

async def cell(number):
    result = compressor.run(
        {"data.prefixes": 4, "data.prefix_tokens": 6, "data.continuation_tokens": 8, "schedule.targets": [0.3]},
        schedule="uniform",
        metric="fdtm", tracking="none", components={"include": ["layers.0.self_attn"]}, export={"verify": False},
        folder=f"cell{number}",
    )
    html = result._repr_html_()
    assert f'href="cell{number}/report.html"' in html and "<table>" in html, html

async def notebook():
    await cell(1)
    await cell(2)

asyncio.run(notebook())
assert sys.argv == ["ipykernel_launcher.py", "-f", "kernel.json"]
"""

APPLICATION = """
import hydra, compressor
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

@hydra.main(version_base="1.2", config_path=None)
def application(config):
    before = HydraConfig.get().runtime.output_dir
    result = compressor.run(
        {"data.prefixes": 4, "data.prefix_tokens": 6, "data.continuation_tokens": 8, "schedule.targets": [0.3]},
        schedule="uniform",
        metric="fdtm", tracking="none", components={"include": ["layers.0.self_attn"]}, export={"verify": False},
        folder=before + "/inner",
    )
    assert result.status == "done" and HydraConfig.get().runtime.output_dir == before
    from hydra.version import getbase
    assert str(getbase()) == "1.2"
    from hydra.core.global_hydra import GlobalHydra
    assert GlobalHydra.instance().is_initialized()
    assert hydra.compose(overrides=["+a=1"]) == {"a": 1}

application()
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [NOTEBOOK, APPLICATION], ids=["notebook", "hydra application"])
def test_it_works_inside_a_notebook_and_inside_a_hydra_application(script: str, tmp_path: Path) -> None:
    """Nothing is read from the command line, nothing printed, and the application keeps its own Hydra."""
    command = [sys.executable, "-c", script]
    done = run_project(command, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_progress_is_shown_only_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = SMALL | {"schedule": {"name": "uniform", "targets": [0.3]}}
    compressor.run(folder=tmp_path / "quiet", **options)
    assert capsys.readouterr() == ("", "")
    compressor.run(folder=tmp_path / "shown", progress=True, **options)
    assert "round 1 kept" in capsys.readouterr().out


def test_what_a_notebook_shows_is_escaped(tmp_path: Path) -> None:
    from compressor.commands.from_python import ForecastResult, RunResult

    planted = '<script>alert("x")</script>'
    folder = tmp_path / planted.replace("/", "")
    failed = RunResult("failed", {"model": {"path": planted}}, {}, error=planted, folder=folder)
    forecast = ForecastResult({"model": {"path": planted}}, {}, folder=folder)
    for html in (failed._repr_html_(), forecast._repr_html_()):
        assert "<script" not in html and "&lt;script&gt;" in html
        ElementTree.fromstring(f"<div>{html}</div>")
        assert folder.as_uri() in html
    assert isinstance(failed, Record)


@pytest.mark.parametrize("call", [compressor.run, compressor.forecast])
def test_one_call_at_a_time(call: Callable[..., object], tmp_path: Path) -> None:
    with one_at_a_time(), ThreadPoolExecutor(1) as threads, pytest.raises(ConfigError, match=r"^another call of comp"):
        threads.submit(call, folder=tmp_path / "out").result()
    assert not (tmp_path / "out").exists()


def test_models_are_loaded_in_several_threads(tmp_path: Path) -> None:
    """Each is built without memory first, which torch is told for the whole process."""
    folder = save_checkpoint("llama", tmp_path)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(compressor.load, [folder] * 8))
    for network in [*found, compressor.load(folder)]:
        assert not any(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    "schedule",
    [
        "budget",
        "uniform",
        "global",
        "fdt_allocation",
        {"name": "budget", "size": "50%"},
        {"name": "beam", "floor": 3.0},
    ],
)
def test_a_recorded_configuration_is_read_back(schedule: str | dict[str, object], tmp_path: Path) -> None:
    """With the defaults of every option, an empty list too."""
    first = prepare("run", None, {"schedule": schedule, "tracking": "none"}, tmp_path / "a")
    again = prepare("run", None, first.config, tmp_path / "b")
    assert again.config == first.config
    assert repr(again.settings) == repr(first.settings)


def test_an_error_can_be_printed_whatever_is_in_it() -> None:
    with pytest.raises(compressor.CompressorError) as caught:
        compressor.run({"model.path": "a\udcff", "model": "hf"})
    str(caught.value).encode()


def test_a_working_directory_that_was_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    with pytest.raises(
        compressor.CompressorError, match=r"^the working directory cannot be read: .*; change to another"
    ):
        compressor.run(folder=tmp_path / "out")
