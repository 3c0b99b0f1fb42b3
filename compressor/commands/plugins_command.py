"""`compressor plugins`: what is installed, what it offers, what failed to load."""

import json
from collections.abc import Sequence
from typing import Any

from compressor.commands.config import import_plugins
from compressor.commands.results_place import showing
from compressor.commands.terminal import Terminal
from compressor.contracts.declarations import summarize_class
from compressor.errors import ConfigError
from compressor.plugins import Plugins


def list_plugins(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor plugins [--json]`: what is installed, what it offers, what failed to load."""
    if any(argument != "--json" for argument in arguments):
        raise ConfigError(f"`compressor plugins` takes only --json, got {' '.join(arguments)}")
    plugins = import_plugins()
    facts = describe_plugins(plugins)
    with showing():
        if "--json" in arguments:
            terminal.console.print_json(json.dumps(facts))
        else:
            show_plugins(plugins, terminal)
    return 0


def show_plugins(plugins: Plugins, terminal: Terminal) -> None:
    """A line for each class that plugins offer, and one for each plugin that failed to load."""
    for registry in plugins.registries():
        for name, entry in registry.entries.items():
            summary = summarize_class(entry.cls)
            terminal.say(f"{registry.word:<11} {name:<22} {entry.distribution} {entry.version:<8} {summary}")
    for failure in plugins.failures:
        terminal.fail(str(failure))


def describe_plugins(plugins: Plugins) -> dict[str, Any]:
    """Installed plugins as plain data."""
    facts: dict[str, Any] = {
        registry.plural: {
            name: {"distribution": entry.distribution, "version": entry.version, "class": entry.cls.__qualname__}
            for name, entry in registry.entries.items()
        }
        for registry in plugins.registries()
    }
    facts["failures"] = [
        {
            "plugin": failure.plugin.entry_point.name,
            "distribution": failure.plugin.distribution,
            "version": failure.plugin.version,
            "cause": failure.cause,
        }
        for failure in plugins.failures
    ]
    return facts
