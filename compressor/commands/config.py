"""Composes the configuration by Hydra, and says what is wrong with an override in one line, with near misses."""

import dataclasses
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compressor.errors import ConfigError, suggest
from compressor.plugins import Plugins
from compressor.settings import Settings

CONFIG_MODULE = "compressor.conf"
FORECAST = ("compressor=[magnitude,int8,int4]", "metric=[fdtm,margin_noise]", "tracking=none")
FORECAST_SCHEDULE = ("schedule=budget", "schedule.corrections=0", "schedule.objective=margin_noise")
"""What `compressor forecast` chooses where the user does not."""
SIZE_OPTIONS = ("size", "bytes", "bits")
"""Options of schedules that limit how much the compressed weights may take."""
SIZED = "compressor=[int8,int4]"
"""The default where a size is given: pruned weights make no file smaller, integers do."""
RENAMED: dict[str, str] = {}
"""Old key -> its name now. Old keys are accepted, with a warning."""

log = logging.getLogger(__name__)


def store_schemas(plugins: Plugins) -> None:
    """Publish the settings and every plugin's options: installing a plugin makes its name a valid choice."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Settings)
    for registry in (plugins.metrics, plugins.compressors):
        for name, cls in registry.items():
            store.store(group=registry.word, name=name, node=cls, package=f"{registry.word}.{name}")
    for name, schedule in plugins.schedules.items():
        store.store(group="schedule", name=name, node=schedule)


def parse_arguments(arguments: Sequence[str]) -> Any:  # noqa: ANN401 - argparse's own
    """Parse Hydra's flags and the overrides; raises ConfigError for a flag that Hydra does not know."""
    parser = get_args_parser()

    def fail(message: str) -> None:
        raise ConfigError(f"{message}; see compressor --help")

    parser.error = fail  # argparse itself would print its usage and exit 2
    parsed = parser.parse_args(list(arguments))
    if parsed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun is not supported: it reads a pickle; give the overrides again instead")
    return parsed


def add_overrides(arguments: Sequence[str], before: Sequence[str] = (), after: Sequence[str] = ()) -> list[str]:
    """The arguments with overrides put around the user's own."""
    return replace_overrides(arguments, [*before, *parse_arguments(arguments).overrides, *after])


def replace_overrides(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments with other overrides in place of the user's, which stand together: argparse takes only that."""
    given = parse_arguments(arguments).overrides
    first = list(arguments).index(given[0]) if given else len(arguments)
    return [*arguments[:first], *overrides, *arguments[first + len(given) :]]


def add_forecast_defaults(arguments: Sequence[str]) -> list[str]:
    """Add the forecast's defaults before the user's overrides, which win.

    If the user chooses a schedule, the options of the default schedule are left out.
    """
    chooses = any(argument.startswith("schedule=") for argument in arguments)
    return add_overrides(arguments, before=[*FORECAST, *(() if chooses else FORECAST_SCHEDULE)])


def alternatives(override: Override) -> list[str]:
    """The override once for each value of its sweep, or as it is."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def check_group(loader: ConfigLoader, plugins: Plugins, group: str, value: object) -> None:
    """Raise ConfigError unless each chosen option of the group exists."""
    options = loader.get_group_options(group)
    for choice in value if isinstance(value, list) else [value]:
        if choice is None:
            raise ConfigError(f"`{group}` must name an option, got null; {suggest('', options)}")
        if (name := str(choice)) in options:
            continue
        for registry in plugins.registries():
            if registry.word == group:
                raise registry.unknown(name)
        raise ConfigError(f"unknown {group} `{name}`; {suggest(name, options)}")


def flatten_keys(node: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a config."""
    if isinstance(node, DictConfig):
        for key in node:
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(node, key):
                yield from flatten_keys(node._get_node(key), f"{prefix}{key}.")


def one_line(error: Exception) -> str:
    """Hydra's message without its hints on how to use Hydra."""
    cause = error.__cause__
    text = f"{error} {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(
        line for line in lines if line and not line.startswith(("full_key", "object_type", "reference_type"))
    )


def compose(overrides: list[str]) -> DictConfig:
    """One configuration; raises ConfigError where a value does not fit its key."""
    try:
        config = hydra.compose("config", overrides=overrides, return_hydra_config=True)
        settings = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        missing = sorted(OmegaConf.missing_keys(settings))
        if missing:
            raise ConfigError(f"`{missing[0]}` is needed and not given; add {missing[0]}=…")
        build_settings(settings)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from None
    return config


def build_settings(config: DictConfig) -> Settings:
    """The typed settings of a composed configuration; plugin options become plugin instances."""
    names = [field.name for field in dataclasses.fields(Settings)]
    unwrapped = {name: config._get_node(name) for name in names}
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


def complete_overrides(overrides: Sequence[str], plugins: Plugins) -> tuple[list[str], DictConfig]:
    """The overrides with renamed keys and default compressors, and the first configuration they make.

    Raises ConfigError, with near misses, for names and values that Hydra would refuse. Inside `open_hydra`.
    """
    renamed = [rename_key(override) for override in parse_overrides(overrides)]
    complete = [*choose_compressors(renamed), *renamed]
    return complete, check_overrides(complete, plugins)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar; raises ConfigError for what it cannot read."""
    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        reason = error.message.splitlines()[0]
        raise ConfigError(f"cannot read `{error.override}`: {reason}; check its quotes and brackets") from None
    return parsed


def rename_key(override: Override) -> str:
    """The override, with the new name of its key and a warning if the key was renamed."""
    key, line = override.key_or_group, override.input_line or ""
    if key not in RENAMED:
        return line
    log.warning("`%s` is now called `%s`; use that name", key, RENAMED[key])
    return line.replace(key, RENAMED[key], 1)


def choose_compressors(overrides: Sequence[str]) -> list[str]:
    """`compressor=[int8,int4]` if a size is given and no compressor is chosen, else nothing."""
    parsed = parse_overrides(overrides)
    if any(override.key_or_group == "compressor" for override in parsed):
        return []
    loader = GlobalHydra.instance().config_loader()
    groups = [o for o in parsed if o.key_or_group and loader.get_group_options(o.key_or_group)]
    try:
        chosen = compose_groups([alternatives(override)[0] for override in groups])
    except ConfigError:
        return []  # `check_overrides` says what is wrong
    schedule = chosen.schedule if isinstance(chosen.schedule, DictConfig) else {}
    in_file = any(schedule.get(name) is not None for name in SIZE_OPTIONS)
    given = {o.key_or_group for o in parsed if o.is_sweep_override() or o.value() is not None}
    if not in_file and not given & {f"schedule.{name}" for name in SIZE_OPTIONS}:
        return []
    has_default = list(chosen.compressor) == list(compose_groups([]).compressor)
    return [SIZED] if has_default else []  # else an experiment has chosen


def check_overrides(overrides: Sequence[str], plugins: Plugins) -> DictConfig:
    """Check names and values before Hydra does, with near misses; returns the first configuration they make."""
    loader = GlobalHydra.instance().config_loader()
    parsed = parse_overrides(overrides)
    choices = [alternatives(override) for override in parsed]
    groups = [bool(override.key_or_group and loader.get_group_options(override.key_or_group)) for override in parsed]
    for override, values, is_group in zip(parsed, choices, groups, strict=True):
        if is_group and not override.is_delete():
            for value in OverridesParser.create().parse_overrides(values):
                check_group(loader, plugins, override.key_or_group, value.value())
    first = [values[0] for values in choices]
    chosen = compose_groups([line for line, is_group in zip(first, groups, strict=True) if is_group])
    keys = set(flatten_keys(chosen))
    for override, is_group in zip(parsed, groups, strict=True):
        key = override.key_or_group
        if not is_group and key not in keys and not key.startswith("hydra."):
            group, _, rest = key.partition(".")
            name = rest.partition(".")[0]
            is_chosen = any(known.startswith(f"{group}.{name}") for known in keys)
            if group in ("compressor", "metric") and name in getattr(plugins, f"{group}s") and not is_chosen:
                raise ConfigError(f"`{key}` is an option of a {group} that is not chosen; add {group}={name}")
            raise ConfigError(f"unknown key `{key}`; {suggest_key(key, keys | set(loader.list_groups('')))}")
    for index, values in enumerate(choices):
        for value in values[1:]:
            compose([*first[:index], value, *first[index + 1 :]])
    return compose(first)


def suggest_key(key: str, known: Collection[str]) -> str:
    """Near misses of a key; without any, where to find all keys."""
    near = suggest(key, known)
    return near if near.startswith("did") else "compressor --help lists all"


def find_varied(overrides: Sequence[str], hydra_config: DictConfig) -> frozenset[str]:
    """The keys that have several values in a multirun, by overrides or by `hydra.sweeper.params`."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    return frozenset(swept | {str(key) for key in OmegaConf.select(hydra_config, "sweeper.params") or ()})


def compose_groups(overrides: list[str]) -> DictConfig:
    """The configuration of group choices alone; mandatory values may be missing."""
    try:
        return hydra.compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last for a group that is null
        raise ConfigError(one_line(error)) from None


def read_config(config: DictConfig) -> tuple[Settings, dict[str, Any]]:
    """The typed settings, and the configuration as plain data for the record."""
    settings = build_settings(config)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    plain["schedule"] = {"name": settings.schedule.name} | plain["schedule"]
    return settings, plain
