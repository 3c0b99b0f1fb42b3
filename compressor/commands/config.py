"""Composes the configuration by Hydra, and turns it into typed settings."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compressor.commands.stopping import stop
from compressor.errors import ConfigError
from compressor.plugins import Plugins, installed
from compressor.settings import Settings

CONFIG_MODULE = "compressor.conf"
FORECAST = ("compressor=[magnitude,int8,int4]", "metric=[fdtm,margin_noise]", "tracking=none")
FORECAST_SCHEDULE = ("schedule=budget", "schedule.corrections=0", "schedule.objective=margin_noise")
"""What `compressor forecast` chooses where the user does not."""


def import_plugins() -> Plugins:
    """Every installed plugin. Their imports take a while, in which a signal ends the process at once."""
    with stop.at_once():
        return installed()


def store_schemas(plugins: Plugins) -> None:
    """Publish the settings and every plugin's options: installing a plugin makes its name a valid choice."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Settings)
    for registry in (plugins.metrics, plugins.compressors):
        for name, cls in registry.items():
            store.store(group=registry.word, name=name, node=cls, package=f"{registry.word}.{name}")
    for name, schedule in plugins.schedules.items():
        store.store(group="schedule", name=name, node=schedule)
    for name, recovery in plugins.recoveries.items():
        store.store(group="recovery", name=name, node=recovery)


def parse_arguments(arguments: Sequence[str]) -> Any:  # noqa: ANN401 - argparse's own
    """Parse Hydra's flags and the overrides; raises ConfigError for a flag that Hydra does not know."""
    parser = get_args_parser()

    def fail(message: str) -> None:
        raise ConfigError(f"{message}; see compressor --help")

    parser.error = fail  # argparse itself would print its usage and exit 2
    parsed = parser.parse_intermixed_args(list(arguments))
    if parsed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun is not supported: it reads a pickle; give the overrides again instead")
    check_flags(parsed)
    return parsed


def check_flags(parsed: Any) -> None:  # noqa: ANN401 - argparse's own
    """Raise ConfigError for flags of Hydra that lead away from this program's configuration, or that exclude others."""
    for name in ("config_dir", "config_name", "config_path"):
        if getattr(parsed, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is not supported: there is one configuration; set its options by key=value")
    for name in ("resolve", "package"):
        if getattr(parsed, name) and not (parsed.cfg or (parsed.help and name == "resolve")):
            raise ConfigError(f"--{name} says how --cfg shows the configuration; add --cfg job, or leave it out")
    names = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(parsed, name)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other; keep one of them")


def add_overrides(arguments: Sequence[str], before: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
    """The arguments with overrides put around the user's own."""
    return replace_overrides(arguments, [*before, *parse_arguments(arguments).overrides, *after])


def replace_overrides(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments with other overrides in place of the user's, before all flags: Hydra takes no flag in between."""
    given, flags = list(parse_arguments(arguments).overrides), []
    for argument in arguments:
        if given and argument == given[0]:
            del given[0]
        else:
            flags.append(argument)
    return [*overrides, *flags]


def add_forecast_defaults(arguments: Sequence[str]) -> list[str]:
    """Add the forecast's defaults before the user's overrides, which win.

    If the user chooses a schedule, the options of the default schedule are left out.
    """
    chooses = any(argument.startswith("schedule=") for argument in arguments)
    return add_overrides(arguments, before=[*FORECAST, *(() if chooses else FORECAST_SCHEDULE)])


def one_line(error: Exception) -> str:
    """Hydra's message without its hints on how to use Hydra."""
    cause = error.__cause__
    text = f"{error} {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    lines = [line.strip() for line in text.splitlines()]
    kept = " ".join(
        line for line in lines if line and not line.startswith(("full_key", "object_type", "reference_type"))
    )
    return kept.replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", "").rstrip(".")


def compose(overrides: list[str]) -> DictConfig:
    """One configuration; raises ConfigError where a value does not fit its key."""
    config = compose_by_hydra(overrides, with_hydra=True)
    try:
        settings = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        missing = sorted(OmegaConf.missing_keys(settings))
        if missing:
            raise ConfigError(f"`{missing[0]}` is needed and not given; add {missing[0]}=…")
        build_settings(settings)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from None
    return config


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's message, and the overrides that may have caused it where it does not name one."""
    said = one_line(error) or type(error).__name__
    if isinstance(error, OmegaConfBaseException) and (suspects := [line for line in overrides if "${" in line]):
        return f"{said}; check {', '.join(suspects):.300}, where a literal ${{ is written \\${{ inside of quotes"
    named = any(line.partition("=")[0].lstrip("+~") in said for line in overrides)
    return said if named else f"{said}; check {' '.join(overrides):.300}"


def build_settings(config: DictConfig) -> Settings:
    """The typed settings of a composed configuration; plugin options become plugin instances."""
    names = [field.name for field in dataclasses.fields(Settings)]
    unwrapped = {name: config._get_node(name) for name in names}
    # After recovery=none, only options are left, which an experiment sets for another recovery.
    if OmegaConf.get_type(config, "recovery") is dict:
        unwrapped["recovery"] = config["recovery"] = None
    return Settings(
        **{
            name: OmegaConf.to_object(node) if OmegaConf.is_config(node) else config[name]
            for name, node in unwrapped.items()
        }
    )


@contextmanager
def open_hydra() -> Iterator[None]:
    """Initialise Hydra's compose API with our configuration; a running Hydra application gets its own state back."""
    state, version = GlobalHydra.instance().hydra, VersionBase.instance().version_base
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3", job_name="compressor"):
            yield
    finally:
        GlobalHydra.instance().hydra = state
        VersionBase.instance().version_base = version


def compose_groups(overrides: list[str]) -> DictConfig:
    """The configuration of group choices alone; mandatory values may be missing."""
    return compose_by_hydra(overrides)


def compose_by_hydra(overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """The composed configuration; raises ConfigError, because whatever Hydra raises here is caused by an override."""
    try:
        return hydra.compose("config", overrides=overrides, return_hydra_config=with_hydra)
    except Exception as error:  # also ValueError and AssertionError, for a group or a parent that is null
        raise ConfigError(explain(error, overrides)) from None


def read_config(config: DictConfig) -> tuple[Settings, dict[str, Any]]:
    """The typed settings, and the configuration as plain data for the record."""
    settings = build_settings(config)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    plain["schedule"] = {"name": settings.schedule.name} | plain["schedule"]
    if settings.recovery is not None:
        plain["recovery"] = {"name": settings.recovery.name} | plain["recovery"]
    return settings, plain
