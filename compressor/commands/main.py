"""The command line: composes the configuration, runs, and turns every user error into one line and exit 1."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from compressor.artifacts.files import check_writable
from compressor.commands.checked_overrides import choose_compressors, complete_overrides, find_varied
from compressor.commands.config import (
    CONFIG_MODULE,
    add_forecast_defaults,
    add_overrides,
    open_hydra,
    parse_arguments,
    read_config,
    replace_overrides,
    store_schemas,
)
from compressor.commands.overrides import quote
from compressor.commands.terminal import Terminal
from compressor.errors import CompressorError, ConfigError, suggest
from compressor.plugins import Plugins, installed

FAILED, INTERRUPTED, BROKEN_PIPE = 1, 130, 141


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor run`: one run, or with -m one for each combination and a table that compares them."""
    plugins = installed()
    store_schemas(plugins)
    place = choose_place(arguments, plugins)
    failures: list[str] = []
    command = shlex.join(["compressor", "run", *arguments])
    launch(place.line, make_job(plugins, terminal, failures, place, command))
    if place.multirun:
        show_comparison(place.folder, terminal)
    return FAILED if failures else 0


def forecast(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor forecast`: what every size would cost, predicted from one backward pass."""
    plugins = installed()
    store_schemas(plugins)
    place = choose_place(add_forecast_defaults(arguments), plugins, many=False)
    failures: list[str] = []
    launch(
        place.line, make_forecast_job(plugins, terminal, failures, shlex.join(["compressor", "forecast", *arguments]))
    )
    return FAILED if failures else 0


@dataclass(frozen=True)
class Place:
    """The folder for results, and Hydra's arguments with that folder.

    `varied` are the keys that have several values in a multirun.
    """

    line: Sequence[str]
    multirun: bool = False
    folder: Path = Path()
    varied: frozenset[str] = frozenset()


def choose_place(arguments: Sequence[str], plugins: Plugins, many: bool = True) -> Place:
    """Check the overrides and make the folder for the results, unless Hydra only shows something.

    Raises ConfigError for a multirun unless `many` runs are allowed.
    """
    parsed = parse_arguments(arguments)
    if parsed.hydra_help or parsed.info or parsed.shell_completion:
        return Place(arguments)
    with open_hydra():
        if parsed.help or parsed.cfg:
            return Place(add_overrides(arguments, before=choose_compressors(parsed.overrides)))
        overrides, composed = complete_overrides(parsed.overrides, plugins)
    arguments, config = replace_overrides(arguments, overrides), composed.hydra
    multirun = parsed.multirun or (config.mode is not None and config.mode.name == "MULTIRUN")
    if multirun and not many:
        raise ConfigError("`compressor forecast` looks at one configuration, got a multirun; leave out -m")
    key, chosen = ("hydra.sweep.dir", config.sweep.dir) if multirun else ("hydra.run.dir", config.run.dir)
    check_writable(Path(chosen))
    # A folder named by the time must not change its name now.
    line = add_overrides(arguments, after=[f"{key}={quote(chosen)}"])
    return Place(line, multirun, Path(chosen), find_varied(parsed.overrides, config))


def launch(line: Sequence[str], job: Callable[[DictConfig], Any]) -> None:
    """Let Hydra compose the configuration and call the job."""
    sys.argv = ["compressor", *line]
    hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="config")(job)()


def make_job(
    plugins: Plugins, terminal: Terminal, failures: list[str], place: Place, command: str
) -> Callable[[DictConfig], float | None]:
    """The function that Hydra calls for each configuration. It returns the first metric, for Hydra's optimisers."""

    def job(config: DictConfig) -> float | None:
        from compressor.commands.run import execute
        from compressor.report import summarize_run
        from compressor.tracking.run_label import make_label

        folder, overrides = Path(HydraConfig.get().runtime.output_dir), list(HydraConfig.get().overrides.task)
        alone = not place.multirun
        if not alone:
            terminal.say(f"job {HydraConfig.get().job.num}: {' '.join(overrides)}")
        try:
            settings, plain = read_config(config)
            label = make_label(overrides, place.varied, settings.schedule.name, None if alone else place.folder)
            record = execute(settings, plugins, folder, plain, command, terminal, label)
        except CompressorError as error:
            failures.append(str(error))
            terminal.fail(str(error) if alone else f"job {HydraConfig.get().job.num}: {error}")
            return None
        terminal.show(summarize_run(record))
        terminal.say(f"report: {folder / 'report.html'}")
        scores = list(record.final.scores.values()) if record.final else []
        return scores[0].mean if scores else None

    return job


def make_forecast_job(
    plugins: Plugins, terminal: Terminal, failures: list[str], command: str
) -> Callable[[DictConfig], None]:
    """The function that Hydra calls for a forecast."""

    def job(config: DictConfig) -> None:
        from compressor.commands.forecast import execute
        from compressor.commands.next_command import choose_point
        from compressor.report.forecast_report import HTML_NAME, summarize_forecast

        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            settings, plain = read_config(config)
            record = execute(settings, plugins, folder, plain, command, terminal)
        except CompressorError as error:
            failures.append(str(error))
            terminal.fail(str(error))
            return
        terminal.show(summarize_forecast(record))
        terminal.say(f"forecast: {folder / HTML_NAME}")
        if (point := choose_point(record)) is not None:
            terminal.say(f"to make the row of {100 * point.amount:.1f} %: {point.command}")

    return job


def show_comparison(folder: Path, terminal: Terminal) -> None:
    """Write and show the table of a multirun, failed jobs included."""
    from compressor.report.comparison import make_comparison_table, write_comparison

    terminal.show(make_comparison_table(write_comparison(folder)))
    terminal.say(f"comparison: {folder / 'comparison.json'}")


def list_plugins(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor plugins [--json]`: what is installed, what it offers, what failed to load."""
    if any(argument != "--json" for argument in arguments):
        raise ConfigError(f"`compressor plugins` takes only --json, got {' '.join(arguments)}")
    plugins = installed()
    facts = describe_plugins(plugins)
    if "--json" in arguments:
        terminal.console.print_json(json.dumps(facts))
    else:
        for registry in plugins.registries():
            for name, entry in registry.entries.items():
                summary = (entry.cls.__doc__ or "").strip().splitlines()[0]
                terminal.say(f"{registry.word:<11} {name:<22} {entry.distribution} {entry.version:<8} {summary}")
        for failure in plugins.failures:
            terminal.fail(str(failure))
    return 0


def describe_plugins(plugins: Plugins) -> dict[str, Any]:
    """Installed plugins as plain data."""
    facts: dict[str, Any] = {
        f"{registry.word}s": {
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


COMMANDS: dict[str, Callable[[Sequence[str], Terminal], int]] = {
    "run": run,
    "forecast": forecast,
    "plugins": list_plugins,
}


def dispatch(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run a command; without one, `run`."""
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        return COMMANDS[first](arguments[1:], terminal)
    if first and "=" not in first and not first.startswith(("-", "+", "~")):
        raise ConfigError(f"unknown command `{first}`; {suggest(first, COMMANDS)}")
    return run(arguments, terminal)


def main() -> None:
    """The console script. Exit status: 0 done, 1 the user can fix it, 130 interrupted; anything else is a bug."""
    terminal = Terminal()
    try:
        sys.exit(dispatch(sys.argv[1:], terminal))
    except CompressorError as error:
        terminal.fail(str(error))
        sys.exit(FAILED)
    except KeyboardInterrupt:
        terminal.fail("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


if __name__ == "__main__":
    main()
