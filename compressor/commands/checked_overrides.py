"""Checks overrides before Hydra reads them, so that what is wrong is said in one line, with near misses."""

import functools
import logging
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import get_args

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from compressor.artifacts.run_state import flatten
from compressor.commands.config import build_settings, compose, compose_by_hydra, compose_groups
from compressor.commands.early_checks import SIZE_OPTIONS, check_forecast, check_settings
from compressor.commands.overrides import NAMED, write_for_shell
from compressor.errors import ConfigError, suggest
from compressor.model_paths import EMBEDDED
from compressor.plugins import Plugins

SIZED = "compressor=[int8,int4]"
"""The default where a size is given: pruned weights make no file smaller, integers do."""
RENAMED: dict[str, str] = {}
"""Old key -> its name now. Old keys are accepted, with a warning."""

TEXTS = ("path", "dir", "subdir", "name", "subset", "column", "revision", "project")
"""Last parts of keys whose values are texts of the user, such as paths."""
MANY = ("metric", "compressor", "experiment")
"""Groups of the configuration of which several options can be chosen."""
LONGEST, DEEPEST, MOST_RUNS = 10_000, 50, 10_000
"""Characters of one override, brackets inside one another, and runs of one multirun. Beyond, Hydra takes minutes."""

log = logging.getLogger(__name__)


def complete_overrides(
    overrides: Sequence[str], plugins: Plugins, forecasts: bool = False
) -> tuple[list[str], DictConfig]:
    """The overrides with renamed keys and default compressors, and the first configuration they make.

    Raises ConfigError, with near misses, for names and values that Hydra would refuse. Inside `open_hydra`.
    """
    loader = GlobalHydra.instance().config_loader()
    parsed = parse_overrides([rename_key(override) for override in parse_overrides(overrides)])
    check_count(parsed)
    for override in parsed:
        check_choice(override, loader, plugins)
    chosen = compose_choices(parsed, loader)
    if added := parse_overrides(choose_default_compressors(parsed, chosen)):
        parsed = [*added, *parsed]
        chosen = compose_choices(parsed, loader)
    keys = set(flatten_keys(chosen))
    lines = [override.input_line or "" for override in parsed]
    for index, override in enumerate(parsed):
        key = override.key_or_group
        if is_group(loader, key) or (key.startswith("hydra.") and key not in keys):  # Hydra takes further keys
            continue
        check_key(key, keys, loader, plugins)
        if override.is_delete():
            check_removal(key, chosen)
        else:
            lines[index] = fit_value(override, alternatives(override), chosen)
    fitted = parse_overrides(lines)
    first = [alternatives(override)[0] for override in fitted]
    for index, override in enumerate(fitted):
        for value in alternatives(override)[1:] if is_group(loader, override.key_or_group) else ():
            compose([*first[:index], value, *first[index + 1 :]])
    config = compose(first)
    if not any(override.is_sweep_override() for override in parsed):  # else each job is checked, and fails alone
        settings = build_settings(config)
        if forecasts:
            check_forecast(settings)
        check_settings(settings, plugins)
    return lines, config


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar; raises ConfigError for what it cannot read."""
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    return [parse_override(override, loader) for override in overrides]


@functools.lru_cache(maxsize=256)
def parse_override(override: str, loader: ConfigLoader | None) -> Override:
    """Parse one override by Hydra's grammar, which takes long; raises ConfigError for what it cannot read.

    `loader` knows the options that glob(…) chooses from.
    """
    check_text(override)
    try:
        (parsed,) = OverridesParser.create(loader).parse_overrides([override])
    except OverrideParseException as error:
        reason = error.message.splitlines()[0]
    except (ValueError, OverflowError, RecursionError) as error:  # a number of thousands of digits, a wrong escape
        reason = (str(error).splitlines() or ["nothing can be made of it"])[0]
    else:
        return parsed
    fix = advise_quotes(override) or "check its quotes and brackets"
    raise ConfigError(f"cannot read `{override:.200}`: {reason:.200}; {fix}") from None


def advise_quotes(override: str) -> str | None:
    """How to write an override whose value is one text, such as a path with commas; None if its key takes no text."""
    key, equals, text = override.partition("=")
    if not equals or key.rpartition(".")[2] not in TEXTS:
        return None
    return f"a text with special characters needs quotes inside of the shell's: {write_for_shell(key, text)}"


def check_text(override: str) -> None:
    """Raise ConfigError for an override that no parser should see."""
    if "\0" in override:
        raise ConfigError(f"`{override:.60}` has a NUL character, which no name or text may have; leave it out")
    if not is_unicode(override):
        encoding = sys.getfilesystemencoding()
        fix = "rename it" if encoding == "utf-8" else f"Python reads arguments as {encoding} here: set PYTHONUTF8=1"
        raise ConfigError(f"`{override:.60}` is not UTF-8, which every name and text must be; {fix}")
    if len(override) > LONGEST:
        raise ConfigError(f"`{override:.60}…` has {len(override)} characters, at most {LONGEST} are read; shorten it")
    depth = deepest = 0
    for character in override:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise ConfigError(
            f"`{override:.60}…` has {deepest} brackets inside one another, at most {DEEPEST} are read; close them"
        )


def is_unicode(text: str) -> bool:
    """Whether no byte of a text from the command line, or from a file's name, stands for itself."""
    with suppress(UnicodeEncodeError):
        return bool(text.encode()) or not text
    return False


def check_sweeps(overrides: Sequence[str], multirun: bool) -> None:
    """Raise ConfigError for several values of a key outside of a multirun, or of a setting of Hydra itself."""
    for override in parse_overrides(overrides):
        line = override.input_line or ""
        if not override.is_sweep_override():
            continue
        if override.key_or_group.startswith("hydra."):
            raise ConfigError(
                f"`{line:.200}` has several values, and one is needed; {advise_quotes(line) or 'give one'}"
            )
        if not multirun:
            fix = advise_quotes(line) or f"for one list write {override.key_or_group}=[…]"
            raise ConfigError(f"`{line:.200}` has several values; add -m for a run with each of them; {fix}")


def check_count(overrides: Sequence[Override]) -> None:
    """Raise ConfigError for sweeps that make too many runs, without listing them."""
    runs = 1
    for override in overrides:
        values = override.value()
        if isinstance(values, RangeSweep):
            start, end, step = (float(part or 0) for part in (values.start, values.stop, values.step))
            if not all(map(math.isfinite, (start, end, step))) or step == 0:
                raise ConfigError(f"cannot read `{override.input_line:.200}`: a range needs finite numbers, and a step")
            runs *= max(math.ceil((end - start) / step), 0)
        elif isinstance(values, ChoiceSweep):
            runs *= len(values.list)
        if runs > MOST_RUNS:
            raise ConfigError(f"`{override.input_line:.200}` makes more than {MOST_RUNS} runs; give fewer values")


def is_group(loader: ConfigLoader, key: str) -> bool:
    """Whether a key is a group of options."""
    return bool(key) and "." not in key and bool(list_options(loader, key))


@functools.lru_cache(maxsize=256)
def list_options(loader: ConfigLoader, group: str) -> tuple[str, ...]:
    """The options of a group, none if there is no such group. Hydra copies all options of all groups to answer."""
    with suppress(OSError):  # a name that is too long for a file
        return tuple(loader.get_group_options(group))
    return ()


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
    try:
        return choose_default_compressors(parsed, compose_choices(parsed, GlobalHydra.instance().config_loader()))
    except ConfigError:
        return []  # Hydra says what is wrong


def compose_choices(overrides: Sequence[Override], loader: ConfigLoader) -> DictConfig:
    """The configuration of the choices of options alone, the first of each sweep; mandatory values may be missing."""
    chosen = [override for override in overrides if is_group(loader, override.key_or_group)]
    return compose_by_hydra([alternatives(override)[0] for override in chosen], with_hydra=True)


def choose_default_compressors(overrides: Sequence[Override], chosen: DictConfig) -> list[str]:
    """As `choose_compressors`, where `chosen` is what `compose_choices` made of the overrides."""
    if any(override.key_or_group == "compressor" for override in overrides):
        return []
    sizes = {f"schedule.{name}" for name in SIZE_OPTIONS}
    schedule = {} if OmegaConf.is_missing(chosen, "schedule") else chosen.schedule or {}
    in_file = any(schedule.get(name) is not None for name in SIZE_OPTIONS)
    given = {o.key_or_group for o in overrides if o.is_sweep_override() or o.value() is not None}
    if not in_file and not given & sizes:
        return []
    is_default = list(chosen.compressor) == list(compose_groups([]).compressor)
    return [SIZED] if is_default else []  # else an experiment has chosen


def check_key(key: str, keys: Collection[str], loader: ConfigLoader, plugins: Plugins) -> None:
    """Raise ConfigError for a key that the chosen groups do not have."""
    if key in keys:
        return
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    is_chosen = any(known.startswith(f"{group}.{name}") for known in keys)
    if group in ("compressor", "metric") and name in getattr(plugins, f"{group}s") and not is_chosen:
        raise ConfigError(f"`{key}` is an option of a {group} that is not chosen; add {group}={name}")
    for registry in plugins.registries():
        if registry.word != group:
            continue
        if others := [name for name, plugin in registry.items() if rest in {each.name for each in fields(plugin)}]:  # type: ignore[arg-type]
            raise ConfigError(
                f"`{key}` is an option of {', '.join(others)}, and not of the chosen {group}; leave it out, or add "
                f"{group}={others[0]}"
            )
    raise ConfigError(f"unknown key `{key}`; {suggest_key(key, {*keys, *loader.list_groups('')})}")


def check_group_removal(override: Override) -> None:
    """Raise ConfigError where `~group=option` does not name the one option of a group."""
    group, option, line = override.key_or_group, override.value(), f"{override.input_line:.200}"
    if isinstance(option, str) and group in NAMED:
        raise ConfigError(f"`{line}` cannot take one of several options; write ~{group}.{option}, or ~{group} for all")
    if not isinstance(option, str | None):
        raise ConfigError(f"`{line}` names no option; write ~{group}")


def check_removal(key: str, config: DictConfig) -> None:
    """Raise ConfigError for the removal of a key that must have a value."""
    *path, _ = key.split(".")
    parent = config
    for step in path:
        parent = parent._get_node(step)
    if not path or OmegaConf.get_type(parent) is not dict:
        raise ConfigError(
            f"`~{key}` removes a key, and `{key}` must have a value; leave it out for its default, or write {key}=VALUE"
        )


def fit_value(override: Override, values: Sequence[str], config: DictConfig) -> str:
    """The override, in which a single value of a key that holds a list is a list of one.

    Raises ConfigError for a value that the key of `config` cannot hold. `values` are its alternatives.
    """
    key, parent = override.key_or_group, config
    *path, name = key.split(".")
    for step in path:
        parent = parent._get_node(step)
    node = parent._get_node(name)
    fitted = [value.value() for value in parse_overrides(values)]
    wraps = isinstance(node, ListConfig) and not any(isinstance(value, list | None) for value in fitted)
    for value in fitted:
        try:
            if isinstance(node, ListConfig) and isinstance(value, list) and any(is_nested(item) for item in value):
                raise ValueError("OmegaConf takes lists and mappings for elements of any type")
            tried = config.copy()
            OmegaConf.update(tried, key, [value] if wraps else value)
            if not key.startswith("hydra."):
                with suppress(InterpolationKeyError):  # it leads nowhere, as Hydra says
                    OmegaConf.select(tried, key)  # it leads to a value of another type
        except (OmegaConfBaseException, ValueError):
            raise ConfigError(
                f"`{key}` must be {describe_type(node)}, got {describe_value(value)}; correct it or leave it out"
            ) from None
        if isinstance(node, DictConfig) and not key.startswith("hydra."):
            raise ConfigError(
                f"`{key}` has options of its own, got {value!r:.200}; set one of them, {key}.OPTION=VALUE"
            )
    if not wraps:
        return override.input_line or ""
    inside = [value.partition("=")[2] for value in values]
    return f"{override.get_key_element()}={','.join(f'[{value}]' for value in inside)}"


def is_nested(value: object) -> bool:
    return isinstance(value, list | dict)


def describe_value(value: object) -> str:
    """A value as a user writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.200}"


def describe_type(node: Node) -> str:
    """What a key may hold, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    of_many = {int: "whole numbers", float: "numbers", str: "texts"}
    if isinstance(node, ListConfig):
        return f"a list of {of_many.get(node._metadata.element_type, 'values')}, such as [a,b]"
    if isinstance(node, DictConfig):
        return "a group of options"
    kind = node._metadata.ref_type
    said = " or ".join(words.get(one, "a value") for one in get_args(kind) or [kind])
    if isinstance(kind, type) and issubclass(kind, Enum):
        said = f"one of {', '.join(member.name for member in kind)}"
    return f"{said} or null" if node._is_optional() else said


def check_choice(override: Override, loader: ConfigLoader, plugins: Plugins) -> None:
    """Raise ConfigError for an override that chooses options of a group, unless each of them exists."""
    if not is_group(loader, override.key_or_group):
        return
    if override.is_delete():
        check_group_removal(override)
    else:
        values = [value.value() for value in parse_overrides(alternatives(override))]
        check_group(loader, plugins, override.key_or_group, values)


def check_group(loader: ConfigLoader, plugins: Plugins, group: str, values: Sequence[object]) -> None:
    """Raise ConfigError unless each chosen option of the group exists."""
    options = list_options(loader, group)
    if [] in values:
        raise ConfigError(f"`{group}` must name at least one option, got []; {suggest('', options)}")
    for value in values:
        if isinstance(value, list) and len(value) > 1 and group not in MANY and not group.startswith("hydra/"):
            names = ",".join(map(str, value))
            raise ConfigError(f"`{group}` takes one option, got {names}; choose one, or run each by -m {group}={names}")
    for choice in [one for value in values for one in (value if isinstance(value, list) else [value])]:
        if choice is None:
            raise ConfigError(f"`{group}` must name an option, got null; {suggest('', options)}")
        if (name := str(choice)) in options:
            continue
        for registry in plugins.registries():
            if registry.word == group:
                raise registry.unknown(name, options)
        raise ConfigError(f"unknown {group} `{name}`; {suggest(name, options)}")


def alternatives(override: Override) -> list[str]:
    """The override once for each value of its sweep, or as it is."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    try:
        found = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise ConfigError(
            f"cannot list the values of `{override.input_line:.200}` ({str(error).splitlines()[0]}); name them"
        ) from None
    if not found:
        raise ConfigError(f"`{override.input_line:.200}` names no value; give at least one")
    return found


def flatten_keys(node: object, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a config."""
    if isinstance(node, DictConfig):
        for key in node:
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(node, key):
                yield from flatten_keys(node._get_node(key), f"{prefix}{key}.")


def suggest_key(key: str, known: Collection[str]) -> str:
    """Near misses of a key; without any, where to find all keys."""
    near = suggest(key, known)
    return near if near.startswith("did") else "compressor --help lists all"


def find_varied(overrides: Sequence[str], hydra_config: DictConfig) -> frozenset[str]:
    """The keys that have several values in a multirun, by overrides or by `hydra.sweeper.params`."""
    parsed = parse_overrides(overrides)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    return frozenset(swept | {str(key) for key in OmegaConf.select(hydra_config, "sweeper.params") or ()})


def find_inputs(overrides: Sequence[str], config: Mapping[str, object]) -> list[tuple[str, Path]]:
    """Key and path of what is read from this machine, in any job of a multirun; the embedded model is one of them.

    These are the values of keys whose last part is `path`, if they exist.
    """
    found = list(flatten(config))
    for override in parse_overrides(overrides):
        found += [(override.key_or_group, value.value()) for value in parse_overrides(alternatives(override))]
    given = [(key, Path(value)) for key, value in found if key.endswith(".path") and isinstance(value, str) and value]
    return [("model", EMBEDDED), *((key, path) for key, path in given if os.path.exists(path))]
