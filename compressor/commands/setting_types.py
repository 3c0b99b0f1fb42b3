"""Types of the values in a `Settings` object from Python, which Hydra has not checked."""

import dataclasses
import enum
import types
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from compressor.contracts import Compressor, Metric, Recovery, Schedule
from compressor.contracts.declarations import require_kind
from compressor.errors import ConfigError
from compressor.settings import Settings

NUMBERS: dict[object, type] = {int: Integral, float: Real}
WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}


def read_settings(settings: Settings) -> Settings:
    """The settings, in which texts that name a choice are that choice; the given object is not changed.

    Raises ConfigError for a value, also of a plugin, of another type than its annotation, and PluginError for an object
    in place of a plugin.
    """
    hints = get_type_hints(Settings)
    chosen: dict[str, Any] = {}
    for group, value in vars(settings).items():
        if group in ("metric", "compressor"):
            check_plugins(group, value, Metric if group == "metric" else Compressor)
        elif group == "schedule" or (group == "recovery" and value is not None):
            check_plugin(group, value, Schedule if group == "schedule" else Recovery)
        else:
            check_value(group, value, hints[group])
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                check_fields(group, value)
                chosen[group] = dataclasses.replace(value, **dict(list_choices(value)))
    return dataclasses.replace(settings, **chosen)


def list_choices(instance: object) -> Iterator[tuple[str, enum.Enum]]:
    """Name and value of each field that holds a choice."""
    for name, hint in get_type_hints(type(instance)).items():
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            yield name, hint(getattr(instance, name))


def check_plugins(group: str, plugins: object, contract: type) -> None:
    """Raise CompressorError for anything but a mapping of names to plugins."""
    if not isinstance(plugins, Mapping) or not all(isinstance(name, str) for name in plugins):
        raise ConfigError(f"`{group}` must be {{name: {group}}}, got {plugins!r:.80}; give names and objects")
    for name, plugin in plugins.items():
        check_plugin(f"{group}.{name}", plugin, contract)


def check_plugin(key: str, plugin: object, contract: type) -> None:
    """Raise CompressorError for anything but a plugin of this kind with options of the right types."""
    require_kind(plugin, key.partition(".")[0], contract)
    if dataclasses.is_dataclass(plugin):
        check_fields(key, plugin)


def check_fields(key: str, instance: object) -> None:
    """Raise ConfigError for a field of a dataclass that holds another type than its annotation."""
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):  # type: ignore[arg-type]
        check_value(f"{key}.{field.name}", getattr(instance, field.name), hints[field.name])


def check_value(key: str, value: object, hint: object) -> None:
    """Raise ConfigError for a value of another type than the annotation `hint`."""
    if not fits(value, hint):
        raise ConfigError(f"`{key}` must be {describe_hint(hint)}, got {value!r:.80}; correct it or leave it out")


def fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - any annotation
    """Whether a value has the type of an annotation; annotations that no setting has are taken."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return any(fits(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if hint is Any:
        return True
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, hint) or value in [one.value for one in hint]
    if hint in NUMBERS:
        return isinstance(value, NUMBERS[hint]) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def describe_hint(hint: Any) -> str:  # noqa: ANN401 - any annotation
    """What a setting may hold, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        return " or ".join(map(describe_hint, arguments))
    if origin is list:
        return f"a list, each {describe_hint(arguments[0])}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(hint.__members__)
    return WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"
