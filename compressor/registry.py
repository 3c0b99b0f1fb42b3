"""Plugin classes by name, one registry for each kind of plugin. Two classes with the same name are an error."""

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf

from compressor.contracts import Better, Compressor, Metric, Reads, Recovery, Schedule
from compressor.contracts.guard import ORIGIN
from compressor.errors import ConfigError, PluginError, suggest

T = TypeVar("T", Metric, Compressor, Schedule, Recovery)

REQUIRED: dict[type, dict[str, type]] = {
    Metric: {"name": str, "reads": Reads, "better": Better},
    Compressor: {"name": str},
    Schedule: {"name": str},
    Recovery: {"name": str},
}
"""Class attributes that each contract requires, with their types."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered class and the distribution that contains it."""

    cls: type[T]
    distribution: str
    version: str


class Registry(Mapping[str, type[T]]):
    """The classes of one contract, by name."""

    def __init__(self, contract: type[T]) -> None:
        self.contract: type[T] = contract
        self.word = contract.__name__.lower()
        self.plural = f"{self.word[:-1]}ies" if self.word.endswith("y") else f"{self.word}s"
        self.entries: dict[str, Entry[T]] = {}
        self.hints: list[Callable[[], str]] = []
        """Their texts are appended to the error for an unknown name, for example plugins that failed to load."""

    def add(self, cls: type[T], distribution: str, version: str) -> None:
        """Register `cls`; raises PluginError if it does not fit the contract or its name is taken."""
        self.check(cls)
        if cls.name in self.entries:
            owner = self.entries[cls.name]
            taken_by = f"{owner.distribution} {owner.version}"
            raise PluginError(f"{self.word} `{cls.name}` is already taken by {taken_by}; choose another name")
        self.entries[cls.name] = Entry(cls, distribution, version)
        setattr(cls, ORIGIN, f"{distribution} {version}")  # errors of the plugin name it

    def check(self, cls: type[T]) -> None:
        """Raises PluginError if `cls` does not fit the contract; the message names what is missing."""
        if not (isinstance(cls, type) and issubclass(cls, self.contract)):
            raise PluginError(f"{cls!r} is not a subclass of {self.contract.__name__}; derive it from that")
        path = f"{cls.__module__}.{cls.__qualname__}"
        for attribute, kind in REQUIRED[self.contract].items():
            if not isinstance(getattr(cls, attribute, None), kind):
                raise PluginError(f"{path} lacks the field `{attribute}` ({kind.__name__}); set it on the class")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", cls.name):
            raise PluginError(f"{self.word} name `{cls.name}` must be lower case letters, digits and underscores")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))
            raise PluginError(f"{path} lacks {missing}; implement it")
        if "__dataclass_params__" not in vars(cls):  # a parent may be a dataclass without the class's own options
            raise PluginError(f"{path} is not a dataclass; put @dataclass on it")
        if vars(cls)["__dataclass_params__"].frozen:
            raise PluginError(f"{path} is a frozen dataclass, whose options cannot be overridden; drop frozen=True")
        for option in dataclasses.fields(cls):  # type: ignore[arg-type]
            if option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING:
                raise PluginError(f"field `{option.name}` of {self.word} `{cls.name}` has no default; give it one")
        try:
            defaults = OmegaConf.to_container(OmegaConf.structured(cls), enum_to_str=True)
        except Exception as error:  # OmegaConf raises many kinds of errors for unusual annotations
            reason = str(error).partition("\n")[0]
            raise PluginError(f"the fields of {path} cannot be options: {reason}; use simple types") from None
        assert isinstance(defaults, dict), "a dataclass has fields"
        for name, value in defaults.items():
            try:
                json.dumps(value, default=write_path)
            except (TypeError, ValueError) as error:  # bytes, or a number of thousands of digits
                raise PluginError(
                    f"the default of `{name}` of {self.word} `{cls.name}` cannot be written into a report ({error}); "
                    "use simple types"
                ) from None

    def unknown(self, name: str, further: Iterable[str] = ()) -> ConfigError:
        """The error for a name that is not registered; `further` names can be given in its place too."""
        hints = "".join(f"; {text}" for hint in self.hints if (text := hint()))
        return ConfigError(f"unknown {self.word} `{name}`; {suggest(name, {*self.entries, *further})}{hints}")

    def __getitem__(self, name: str) -> type[T]:
        if name not in self.entries:
            raise self.unknown(name)
        return self.entries[name].cls

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def write_path(value: object) -> str:
    """A path as text, for JSON; raises TypeError for anything else."""
    if not isinstance(value, os.PathLike):
        raise TypeError(f"it is of type {type(value).__name__}")
    return str(value)


def option_names(cls: type[Compressor]) -> list[str]:
    """The field names of a compressor class; the registry has checked that it is a dataclass."""
    assert dataclasses.is_dataclass(cls)
    return [field.name for field in dataclasses.fields(cls)]


def escape(value: Any) -> Any:  # noqa: ANN401 - any value of a configuration
    """The value, in which OmegaConf finds nothing to interpolate."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    if isinstance(value, Mapping):
        return {name: escape(item) for name, item in value.items()}
    return [escape(item) for item in value] if isinstance(value, list | tuple) else value


def build_options(cls: type[Compressor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a plan file converted to the types of the fields; enums are given by name.

    A text is taken as it is: `${…}` in a file must not read the environment.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), escape(dict(options)))
        built = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from None
    return {name: getattr(built, name) for name in option_names(cls)}
