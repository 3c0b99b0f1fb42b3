"""`compressor.run` and `compressor.forecast`: the commands as functions, for scripts and notebooks."""

import re
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from compressor.arguments import read_path
from compressor.artifacts.folder_check import check_folder
from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_record import Record
from compressor.commands import forecast as forecast_command
from compressor.commands import run as run_command
from compressor.commands.checked_overrides import complete_overrides, find_inputs
from compressor.commands.config import (
    add_forecast_defaults,
    open_hydra,
    read_config,
    store_schemas,
)
from compressor.commands.overrides import write_overrides
from compressor.commands.plain_settings import describe_settings
from compressor.commands.results_place import require_working_directory
from compressor.commands.setting_types import read_settings
from compressor.commands.stopping import interruptible
from compressor.commands.terminal import Terminal
from compressor.errors import ConfigError
from compressor.plugins import Plugins, installed
from compressor.progress import Progress, Silent
from compressor.report.notebook_view import make_forecast_view, make_run_view
from compressor.settings import Settings

Options = Mapping[str, Any]
_calling = threading.RLock()
"""Held by the thread that is in a call."""


@dataclass(repr=False)
class RunResult(Record):
    """The record of a run, and its folder; a notebook shows it as a table with a link to the report."""

    folder: Path = Path()

    def to_json(self) -> dict[str, Any]:
        """As in report.json, which does not say where it lies."""
        return {key: value for key, value in super().to_json().items() if key != "folder"}

    def __repr__(self) -> str:
        return f"<run {self.status} in {self.folder}>"

    def _repr_html_(self) -> str:
        return make_run_view(self, self.folder)


@dataclass(repr=False)
class ForecastResult(ForecastRecord):
    """The record of a forecast, and its folder; a notebook shows it as a table with a link to the page."""

    folder: Path = Path()

    def to_json(self) -> dict[str, Any]:
        """As in forecast.json, which does not say where it lies."""
        return {key: value for key, value in super().to_json().items() if key != "folder"}

    def __repr__(self) -> str:
        return f"<forecast of {len(self.curve)} sizes in {self.folder}>"

    def _repr_html_(self) -> str:
        return make_forecast_view(self, self.folder)


def run(
    settings: Settings | Options | None = None,
    /,
    *,
    folder: str | Path | None = None,
    progress: bool | Progress = False,
    **options: Any,  # noqa: ANN401 - any value of a configuration
) -> RunResult:
    """Compress a model, as `compressor run` does with the same options.

    >>> compressor.run(model={"path": "DIR"}, schedule={"size": "50%"}, folder="out")
    >>> compressor.run({"model.path": "DIR", "schedule.size": "50%"}, compressor=["int8", "int4"])

    Options are named as in the configuration. A group is chosen by its name, `schedule="beam"`; its keys are a nested
    mapping or dotted names in a mapping that comes first. `compressor` and `metric` take a name, a list of names or
    {name: {option: value}}; `schedule` takes {"name": …, option: value}. So `compressor.run(**record.config)` repeats
    a run. In place of all that, a `Settings` object may be given.

    Everything goes into `folder`, which is dated like that of the command line where it is left out. With `progress`
    bars and milestones are shown. Raises CompressorError, whose text is one line, for whatever the user can mend.
    """
    with one_at_a_time(), interruptible():
        shown = choose_progress(progress)
        plan = prepare("run", settings, options, folder)
        record = run_command.execute(plan.settings, plan.plugins, plan.folder, plan.config, plan.command, shown)
    return RunResult(**vars(record), folder=plan.folder)


def forecast(
    settings: Settings | Options | None = None,
    /,
    *,
    folder: str | Path | None = None,
    progress: bool | Progress = False,
    **options: Any,  # noqa: ANN401 - any value of a configuration
) -> ForecastResult:
    """What every size would cost, as `compressor forecast` says with the same options; nothing is compressed.

    Arguments and errors are those of `compressor.run`. The points of the `curve` hold the command that makes each.
    """
    with one_at_a_time(), interruptible():
        shown = choose_progress(progress)
        plan = prepare("forecast", settings, options, folder)
        record = forecast_command.execute(plan.settings, plan.plugins, plan.folder, plan.config, plan.command, shown)
    return ForecastResult(**vars(record), folder=plan.folder)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Raise ConfigError in a thread while another one is inside: Hydra, transformers and torch have states for all."""
    if not _calling.acquire(blocking=False):
        raise ConfigError(
            "another call of compressor.run or compressor.forecast is working in this process; wait until it is done, "
            "or start a process for each"
        )
    try:
        yield
    finally:
        _calling.release()


@dataclass(frozen=True)
class Call:
    """What a command is to do: `config` is recorded as its configuration, `command` as how it was started."""

    settings: Settings
    plugins: Plugins
    folder: Path
    config: dict[str, Any]
    command: str


def prepare(command: str, given: Settings | Options | None, options: Options, folder: str | Path | None) -> Call:
    """Settings and folder of a call; raises ConfigError for options that are wrong, OutputError for the folder."""
    require_working_directory()
    chosen_folder = None if folder is None else read_path("folder", folder)
    plugins = installed()
    store_schemas(plugins)
    if isinstance(given, Settings):
        if options:
            raise ConfigError(f"give a Settings object or options, not both; got `{next(iter(options))}` beside it")
        given = read_settings(given)
        config = describe_settings(given)
        place = find_folder(chosen_folder, read_default_folder(plugins), config)
        return Call(given, plugins, place, config, f"compressor.{command}(settings)")
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"the first argument must be a mapping or a Settings object, got {type(given).__name__}")
    for key in (*(given or {}), *options):
        if re.split("[./]", str(key))[0] == "hydra":
            raise ConfigError(f"`{key}` is a setting of the command line; name the folder of results by `folder`")
    with open_hydra():
        groups = GlobalHydra.instance().config_loader().list_groups("")
        written = [*write_overrides(given or {}, groups), *write_overrides(options, groups)]
        keys = [override.partition("=")[0] for override in written]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ConfigError(f"`{twice[0]}` is given twice; keep one of them")
        line = add_forecast_defaults(written) if command == "forecast" else written
        _, composed = complete_overrides(line, plugins, forecasts=command == "forecast")
        default = str(composed.hydra.run.dir)
        chosen = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
        settings, config = read_config(chosen)
    place = find_folder(chosen_folder, default, config)
    return Call(settings, plugins, place, config, shlex.join(["compressor", command, *written]))


def read_default_folder(plugins: Plugins) -> str:
    """Where the command line puts results, by the date."""
    with open_hydra():
        _, composed = complete_overrides([], plugins)
        return str(composed.hydra.run.dir)


def find_folder(folder: Path | None, default: str, config: Mapping[str, Any]) -> Path:
    """The folder that is asked for, or one of the default's name that is new. Raises OutputError."""
    place = folder or next(path for path in list_names(Path(default)) if not path.exists())
    check_folder(place, find_inputs((), config))
    return place.absolute()


def list_names(path: Path) -> Iterator[Path]:
    """`path`, `path_2`, `path_3` …: runs of the same second have folders of their own."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}_{number}")
        number += 1


def choose_progress(progress: bool | Progress | None) -> Progress:
    """What shows that work goes on: nothing, the terminal or notebook, or what the caller brings.

    Raises ConfigError for anything else.
    """
    if progress is None or isinstance(progress, bool):
        return Terminal() if progress else Silent()
    if not all(callable(getattr(progress, method, None)) for method in ("track", "say")):
        raise ConfigError(
            f"`progress` must be True, False or an object with the methods `track` and `say`, got {progress!r:.80}; "
            "give True to see what is done"
        )
    return progress
