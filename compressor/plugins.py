"""Loads plugins from entry points into registries. A plugin that fails is recorded and does not affect the others."""

import functools
import importlib.metadata
import logging
import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import pluggy

from compressor import hookspecs
from compressor.contracts import Compressor, Metric, Recovery, Schedule
from compressor.contracts.guard import OWN_PACKAGES, is_interrupt, say
from compressor.contracts.torch_state import read_torch, restore_torch
from compressor.errors import PluginError
from compressor.registry import Registry

log = logging.getLogger(__name__)
GROUP = "compressor"
OWN_MODULES = "compressor_plugins."


@dataclass(frozen=True)
class Plugin:
    """An entry point of the group `compressor`, and its distribution."""

    entry_point: importlib.metadata.EntryPoint
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"plugin `{self.entry_point.name}` of {self.distribution} {self.version}"


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be loaded, and why."""

    plugin: Plugin
    cause: str

    def __str__(self) -> str:
        return f"{self.plugin} failed to load: {self.cause}"


@dataclass
class Plugins:
    """Everything that is installed."""

    metrics: Registry[Metric] = field(default_factory=lambda: Registry(Metric))  # type: ignore[type-abstract]
    compressors: Registry[Compressor] = field(default_factory=lambda: Registry(Compressor))  # type: ignore[type-abstract]
    schedules: Registry[Schedule] = field(default_factory=lambda: Registry(Schedule))  # type: ignore[type-abstract]
    recoveries: Registry[Recovery] = field(default_factory=lambda: Registry(Recovery))  # type: ignore[type-abstract]
    loaded: list[Plugin] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        for registry in self.registries():
            registry.hints.append(lambda: "; ".join(map(str, self.failures)))

    def registries(self) -> "tuple[Registry[Metric], Registry[Compressor], Registry[Schedule], Registry[Recovery]]":
        return self.metrics, self.compressors, self.schedules, self.recoveries


def find_plugins() -> tuple[list[Plugin], list[Failure]]:
    """All entry points of the group: the project's own first (they keep their names), then by distribution.

    A distribution whose entry points cannot be read is a failure, because it may contain plugins.
    """
    found: dict[tuple[str, str, str], Plugin] = {}
    failures: list[Failure] = []
    for distribution in importlib.metadata.distributions():
        owner, version = "an unnamed distribution", "of unknown version"
        try:
            owner, version = distribution.metadata["Name"] or owner, distribution.metadata["Version"] or version
            entry_points = list(distribution.entry_points)
        except Exception as error:  # metadata of other packages may be broken in any way
            broken = importlib.metadata.EntryPoint("entry_points.txt", "", GROUP)
            failures.append(Failure(Plugin(broken, owner, version), describe_cause(error)))
            continue
        for entry_point in entry_points:
            if entry_point.group == GROUP:
                plugin = Plugin(entry_point, owner, version)
                found.setdefault((plugin.distribution, entry_point.name, entry_point.value), plugin)
    own_first = sorted(
        found.values(),
        key=lambda p: (not p.entry_point.value.startswith(OWN_MODULES), p.distribution, p.entry_point.name),
    )
    return own_first, failures


def describe_cause(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {say(error) or 'no message'}"


def find_place() -> str | None:
    """The working directory; None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def return_to(place: str | None) -> bool:
    """Make `place` the working directory again; returns whether it was not."""
    if place is None or find_place() == place:
        return False
    os.chdir(place)
    return True


def load_plugin(plugin: Plugin, plugins: Plugins) -> None:
    """Import one plugin and register all of its classes, or none if one fails; raises the error."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    state = read_torch()
    if not plugin.entry_point.pattern.match(plugin.entry_point.value):
        raise PluginError(
            f"`{plugin.entry_point.value}` is not `package.module` or `package.module:object`; correct it"
        )
    place = find_place()
    module = plugin.entry_point.load()
    if plugin.entry_point.value.startswith(OWN_MODULES):
        OWN_PACKAGES.add(OWN_MODULES.partition(".")[0])
    manager.register(module, name=plugin.entry_point.name)
    manager.check_pending()
    if not manager.get_hookcallers(module):
        raise PluginError(f"{plugin.entry_point.value} implements no hook; put @compressor.hookimpl on its functions")
    offered: list[tuple[Registry[Any], type]] = []
    known = manager.hook
    hooks = (known.register_metrics, known.register_compressors, known.register_schedules, known.register_recoveries)
    for hook, registry in zip(hooks, plugins.registries(), strict=True):
        hook(register=lambda cls, registry=registry: offered.append((registry, cls)))
    if return_to(place):
        raise PluginError("its import changed the working directory, to which all relative paths belong; do without it")
    if changes := restore_torch(state):
        raise PluginError(f"its import changed torch's {changes}, on which all results depend; do without it")
    registries: tuple[Registry[Any], ...] = plugins.registries()
    before = [dict(registry.entries) for registry in registries]
    try:
        for registry, cls in offered:
            registry.add(cls, plugin.distribution, plugin.version)
    except BaseException:
        for registry, entries in zip(registries, before, strict=True):
            registry.entries = entries
        raise


def load_plugins() -> Plugins:
    """Load every installed plugin again."""
    found, unreadable = find_plugins()
    plugins = Plugins(failures=unreadable)
    for plugin in found:
        state, place = read_torch(), find_place()
        try:
            with redirect_stdout(sys.stderr):  # the output may be JSON
                load_plugin(plugin, plugins)
        except BaseException as error:  # a plugin may raise anything at import
            restore_torch(state)
            return_to(place)
            if is_interrupt(error):
                raise
            plugins.failures.append(Failure(plugin, describe_cause(error)))
        else:
            plugins.loaded.append(plugin)
    for failure in plugins.failures:
        log.warning("%s", failure)
    return plugins


@functools.cache
def installed() -> Plugins:
    """Every installed plugin, loaded once in a process."""
    return load_plugins()
