"""The command line: composes the configuration, runs, and turns every failure into one line and an exit status.

0 done; 1 the user can fix it; 70 a bug of ours; 128 + signal stopped by SIGINT, SIGTERM or SIGHUP.
"""

import json
import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from compressor.artifacts.files import FullDisk, is_full_disk
from compressor.artifacts.run_files import STATUS, list_jobs
from compressor.artifacts.run_folder import DONE, check_folder, held_folder, name_another, read_status
from compressor.commands.checked_overrides import (
    check_sweeps,
    choose_compressors,
    complete_overrides,
    find_inputs,
    find_varied,
)
from compressor.commands.command_record import (
    FOLDER_KEYS,
    RESUME,
    Jobs,
    check_jobs,
    describe_jobs,
    find_directory,
    read_arguments,
    write_command,
)
from compressor.commands.config import (
    CONFIG_MODULE,
    add_forecast_defaults,
    add_overrides,
    one_line,
    open_hydra,
    parse_arguments,
    read_config,
    replace_overrides,
    store_schemas,
)
from compressor.commands.hydra_outputs import check_outputs
from compressor.commands.job_files import recorded_job
from compressor.commands.log_file import find_log
from compressor.commands.overrides import quote
from compressor.commands.stopping import Stopped, find_stopped, stop
from compressor.commands.terminal import LenientStream, Terminal, protect_output
from compressor.commands.together import leading
from compressor.contracts.declarations import summarize_class
from compressor.errors import CompressorError, ConfigError, OutputError, list_causes, suggest
from compressor.plugins import Plugins, installed
from compressor.resources import lacks_memory

FAILED, BUG = 1, 70
LESS_MEMORY = "lower sweep.batch or data.prefixes, add model.stream=true, or take a larger machine"
FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's own variable for tracebacks; --debug sets it."""

log = logging.getLogger(__name__)


def import_plugins() -> Plugins:
    """Every installed plugin. Their imports take a while, in which a signal ends the process at once."""
    with stop.at_once():
        return installed()


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor run`: one run, or with -m one for each combination and a table that compares them."""
    with leading() as leads:
        return run_jobs(arguments, terminal) if leads else 0


def run_jobs(arguments: Sequence[str], terminal: Terminal) -> int:
    """All jobs of a run or a multirun; returns the exit status."""
    plugins = import_plugins()
    store_schemas(plugins)
    place = choose_place(arguments, plugins)
    failures = Failures(terminal)
    command = shlex.join(["compressor", "run", *arguments])
    asked: dict[str, list[str]] = {}
    job = make_job(plugins, terminal, failures, place, command, asked)
    if place.folder is None:
        with showing():
            launch(place, job)
        return failures.status
    with hold(place):
        write_command(place.folder, arguments, place.jobs)
        with failures.caught(place.folder):
            launch(place, job)
        if place.multirun and any((folder / STATUS).is_file() for folder in list_jobs(place.folder)):
            with failures.caught(place.folder):
                show_comparison(place.folder, failures.lines, asked, terminal)
    return failures.status


def forecast(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor forecast`: what every size would cost, predicted from one backward pass."""
    plugins = import_plugins()
    store_schemas(plugins)
    place = choose_place(add_forecast_defaults(arguments), plugins, many=False)
    failures = Failures(terminal)
    command = shlex.join(["compressor", "forecast", *arguments])
    with hold(place), showing(place):
        launch(place, make_forecast_job(plugins, terminal, failures, command))
    return failures.status


def resume(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor resume DIR [resume.accept=[…]]`: go on with an interrupted run or multirun.

    A recorded argument that could run code is only taken if it is given again.
    """
    accepted = [argument for argument in arguments if RESUME.match(argument)]
    given = [argument for argument in arguments if argument not in accepted]
    is_setting = ["=" in argument for argument in given]
    if not given or not given[0] or (is_setting[0] and not Path(given[0]).exists()) or not all(is_setting[1:]):
        raise ConfigError(
            f"`compressor resume` takes a folder, and resume.accept=[…], got {shlex.join(arguments) or 'nothing'}; "
            "give that of the run, for example compressor resume outputs/2026-11-27/12-00-00"
        )
    folder, trusted = Path(given[0]), given[1:]
    if read_status(folder).get("status") == DONE:
        terminal.say(f"the run in {folder} is done; there is nothing to go on with")
        return 0
    arguments = read_arguments(folder, trusted)
    with working_where_started(folder, terminal):
        return run(add_overrides(arguments, after=accepted), terminal)


@contextmanager
def working_where_started(folder: Path, terminal: Terminal) -> Iterator[None]:
    """Inside, relative paths are those of the directory in which the run was started, if it is here."""
    directory = find_directory(folder)
    if directory is None:
        yield
    elif directory.is_dir():
        terminal.say(f"relative paths are those of {directory}, where the run was started")
        with chdir(directory):
            yield
    else:
        terminal.say(f"the run was started in {directory}, which is not here; relative paths are those of {Path.cwd()}")
        yield


def shows_whole() -> bool:
    """Whether tracebacks are shown: --debug, or Hydra's own variable."""
    return os.environ.get(FULL_ERROR, "0") not in ("", "0")


@dataclass
class Failures:
    """Shows the failures of jobs, and keeps the exit status: that of a bug if there is any.

    `lines` are the errors by the name of the folder, which is the number of a job in a multirun.
    With `shows_whole` a bug is not caught, so that its traceback is shown.
    """

    terminal: Terminal
    status: int = 0
    lines: dict[str, str] = field(default_factory=dict)
    shows_whole: bool = field(default_factory=shows_whole)

    @contextmanager
    def caught(self, folder: Path, prefix: str = "") -> Iterator[None]:
        """A failure of a job in `folder` is one line; the traceback of a bug goes to its log."""
        try:
            yield
        except CompressorError as error:
            if (stopped := find_stopped(error)) is not None:
                raise stopped from None
            self.show(FAILED, folder, prefix, str(error))
        except Exception as error:
            if (stopped := find_stopped(error)) is not None:
                raise stopped from None
            if self.shows_whole:
                raise
            log.info("a failure", exc_info=True)
            status, line = describe_failure(error, find_log())
            self.show(status, folder, prefix, line)

    def show(self, status: int, folder: Path, prefix: str, line: str) -> None:
        """Show and keep the error of a job in `folder`."""
        self.status, self.lines[folder.name] = max(self.status, status), line
        self.terminal.fail(f"{prefix}{line}")


def describe_failure(error: Exception, place: Path | None = None) -> tuple[int, str]:
    """Exit status and line of an error that is none of ours: a lack of memory, or a bug, of which a report is asked."""
    if any(map(lacks_memory, list_causes(error))):
        return FAILED, f"no memory is left ({one_line(error) or type(error).__name__}); {LESS_MEMORY}"
    where = f"the traceback is in {place}" if place else "--debug shows the traceback"
    return BUG, f"a bug of compressor, {type(error).__name__}: {str(error) or 'no message'}; please report it: {where}"


@contextmanager
def hold(place: "Place") -> Iterator[None]:
    """Hold the folder of the results, if there is one."""
    with held_folder(place.folder, place.multirun) if place.folder is not None else nullcontext():
        yield


@contextmanager
def showing(place: "Place | None" = None) -> Iterator[None]:
    """Without a folder, what the block shows is its result: raises OutputError if that cannot be written."""
    if place is not None and place.folder is not None:
        yield
        return
    try:
        yield
    except SystemExit as error:  # by Hydra, where it only shows something
        if error.code:
            raise
    sys.stdout.flush()
    failure = sys.stdout.failure if isinstance(sys.stdout, LenientStream) else None
    if failure is not None and not isinstance(failure, BrokenPipeError):
        raise OutputError(f"the output cannot be written: {failure.strerror}; free some space, or write it elsewhere")


@dataclass(frozen=True)
class Place:
    """The folder for results, and Hydra's arguments with that folder.

    `jobs` are those of a multirun, and `varied` the keys that have several values in it.
    """

    line: Sequence[str]
    folder: Path | None = None
    jobs: Jobs | None = None
    varied: frozenset[str] = frozenset()

    @property
    def multirun(self) -> bool:
        return self.jobs is not None


def choose_place(arguments: Sequence[str], plugins: Plugins, many: bool = True) -> Place:
    """Check the overrides and the folder for the results, unless Hydra only shows something.

    Raises ConfigError for a multirun unless `many` runs are allowed.
    """
    parsed = parse_arguments(arguments)
    try:
        return read_place(arguments, parsed, plugins, many)
    except CompressorError:
        raise
    except Exception as error:
        keys = {line.lstrip("+~").partition("=")[0] for line in parsed.overrides} - {*FOLDER_KEYS}
        if shows_whole() or not any(key.startswith("hydra") for key in keys):
            raise
        raise blame_hydra_settings(error) from None  # a group of Hydra's settings that is null, or is no group


def read_place(arguments: Sequence[str], parsed: Namespace, plugins: Plugins, many: bool) -> Place:
    """As `choose_place`, for arguments that were `parsed`."""
    if parsed.hydra_help or parsed.info or parsed.shell_completion:
        return Place(arguments)
    with open_hydra():
        if parsed.help or parsed.cfg:
            return Place(add_overrides(arguments, before=choose_compressors(parsed.overrides)))
        overrides, composed = complete_overrides(parsed.overrides, plugins, forecasts=not many)
        inputs = find_inputs(overrides, {key: composed[key] for key in composed if key != "hydra"})
        arguments, config = replace_overrides(arguments, overrides), composed.hydra
        multirun = parsed.multirun or (config.mode is not None and config.mode.name == "MULTIRUN")
        jobs = describe_jobs(overrides, composed) if multirun else None
    if multirun and not many:
        raise ConfigError("`compressor forecast` looks at one configuration, got a multirun; leave out -m")
    check_sweeps(parsed.overrides, multirun)
    check_outputs(config)
    key = FOLDER_KEYS[multirun]
    try:
        chosen = config.sweep.dir if multirun else config.run.dir
    except OmegaConfBaseException as error:
        raise ConfigError(f"`{key}`: {one_line(error)}; give a folder without ${{…}}, or escape it by \\${{") from None
    if not (chosen or "").strip():
        raise ConfigError(f"`{key}` must be a folder, got {chosen!r}; give one, such as {key}=out, or leave it out")
    check_folder(Path(chosen), inputs, multirun)
    other = FOLDER_KEYS[not multirun]
    if any(line.lstrip("+").partition("=")[0] == other for line in parsed.overrides):
        log.warning("`%s` has no effect %s -m; use %s", other, "with" if multirun else "without", key)
    if jobs is not None:
        check_jobs(Path(chosen), jobs)
    # A folder named by the time must not change its name now.
    line = add_overrides(arguments, after=[f"{key}={quote(chosen)}"])
    return Place(line, Path(chosen), jobs, find_varied(parsed.overrides, config))


def launch(place: Place, job: Callable[[DictConfig], Any]) -> None:
    """Let Hydra compose the configuration and call the job, which handles its own failures.

    Raises OutputError where Hydra cannot write to the folder for results, and ConfigError for whatever else Hydra, or
    code that a setting of Hydra names, raises around the job.
    """
    sys.argv = ["compressor", *place.line]
    shown = shows_whole()
    try:
        with raising_hydra():
            hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="config")(job)()
    except CompressorError:
        raise
    except Exception as error:
        if shown:
            raise
        if place.folder is not None and is_full_disk(error):
            raise OutputError(
                f"cannot write to {place.folder}: {getattr(error, 'strerror', error)}; free some space and start the "
                f"command again, or {name_another(place.multirun)}"
            ) from None
        raise blame_hydra_settings(error) from None


def blame_hydra_settings(error: Exception) -> ConfigError:
    """What the user is told of an error that settings of Hydra cause."""
    reason = one_line(error) or "no message"
    kind = "" if isinstance(error, HydraException | OmegaConfBaseException) else f"{type(error).__name__}: "
    return ConfigError(f"Hydra cannot start with these settings: {kind}{reason}; check those of hydra.*")


@contextmanager
def raising_hydra() -> Iterator[None]:
    """Inside, Hydra raises what it would otherwise print in lines of its own before it exits."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before


def make_job(
    plugins: Plugins,
    terminal: Terminal,
    failures: Failures,
    place: Place,
    command: str,
    asked: dict[str, list[str]],
) -> Callable[[DictConfig], float | None]:
    """The function that Hydra calls for each configuration. It returns the first metric, for Hydra's optimisers.

    It puts the overrides of each job into `asked`, by the name of its folder.
    """

    def job(config: DictConfig) -> float | None:
        with stop.at_once():
            from compressor.commands.finished_jobs import find_finished
            from compressor.commands.run import execute
            from compressor.report import summarize_run
            from compressor.tracking.run_label import make_label

        folder, overrides = Path(HydraConfig.get().runtime.output_dir), list(HydraConfig.get().overrides.task)
        alone, asked[folder.name] = not place.multirun, overrides
        if not alone:
            terminal.say(f"job {HydraConfig.get().job.num}: {' '.join(overrides)}")
        prefix = "" if alone else f"job {HydraConfig.get().job.num}: "
        is_done = not alone and read_status(folder).get("status") == DONE
        writing = nullcontext() if is_done else recorded_job(folder, config)  # nothing is changed in a finished job
        # The inner one writes to the log of the job, the outer one is for a job that cannot write.
        with failures.caught(folder, prefix), naming_multirun(place), writing, failures.caught(folder, prefix):
            settings, plain = read_config(config)
            if not alone and (value := find_finished(folder, settings, plugins, plain)) is not None:
                terminal.say(f"{prefix}was done before")
                return value
            label = make_label(
                overrides, place.varied, settings.schedule.name, place.folder if place.multirun else None
            )
            record = execute(settings, plugins, folder, plain, command, terminal, label)
            terminal.show(summarize_run(record))
            terminal.say(f"report: {folder / 'report.html'}")
            scores = list(record.final.scores.values()) if record.final else []
            return scores[0].mean if scores else None
        return None

    return job


@contextmanager
def naming_multirun(place: Place) -> Iterator[None]:
    """What stops a job, a signal or a full disk, stops its multirun: that is what goes on, and not the job alone."""
    try:
        yield
    except (Stopped, FullDisk) as error:
        if place.multirun and place.folder is not None:
            error.folder = place.folder.absolute()
        raise


def make_forecast_job(
    plugins: Plugins, terminal: Terminal, failures: Failures, command: str
) -> Callable[[DictConfig], None]:
    """The function that Hydra calls for a forecast."""

    def job(config: DictConfig) -> None:
        with stop.at_once():
            from compressor.commands.forecast import execute
            from compressor.commands.next_command import choose_point
            from compressor.report.forecast_report import HTML_NAME, summarize_forecast

        folder = Path(HydraConfig.get().runtime.output_dir)
        with failures.caught(folder), recorded_job(folder, config), failures.caught(folder):
            settings, plain = read_config(config)
            record = execute(settings, plugins, folder, plain, command, terminal)
            terminal.show(summarize_forecast(record))
            terminal.say(f"forecast: {folder / HTML_NAME}")
            if (point := choose_point(record)) is not None:
                terminal.say(f"to make the row of {100 * point.amount:.1f} %: {point.command}")

    return job


def show_comparison(
    folder: Path, failures: Mapping[str, str], asked: Mapping[str, list[str]], terminal: Terminal
) -> None:
    """Show and write the table of a multirun, failed jobs included; `failures` and `asked` are those of this start."""
    from compressor.report.comparison import make_comparison_table, read_jobs, write_comparison

    terminal.show(make_comparison_table(read_jobs(folder, failures, asked)))  # first, because the disk may be full
    write_comparison(folder, failures, asked)
    terminal.say(f"comparison: {folder / 'comparison.json'}")


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


COMMANDS: dict[str, Callable[[Sequence[str], Terminal], int]] = {
    "run": run,
    "forecast": forecast,
    "resume": resume,
    "plugins": list_plugins,
}


def dispatch(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run a command; without one, `run`."""
    first = arguments[0] if arguments else ""
    if "--version" in arguments:
        terminal.say(f"compressor {version('compressor')}")
        return 0
    if first in COMMANDS:
        return COMMANDS[first](arguments[1:], terminal)
    if first and "=" not in first and not first.startswith(("-", "+", "~")):
        raise ConfigError(f"unknown command `{first}`; {suggest(first, COMMANDS)}")
    return run(arguments, terminal)


def main() -> int:
    """Run the command line; returns the exit status."""
    output = protect_output()
    terminal = Terminal()
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[FULL_ERROR] = "1"
    with stop.listening(), stop.at_once():
        status = attempt(sys.argv[1:], terminal)
        output.flush()
        if not status and output.failure is not None and not isinstance(output.failure, BrokenPipeError):
            reason = output.failure.strerror
            terminal.fail(f"the output could not be shown: {reason}; what was written to files is whole")
        stop.finish(status)
    return status


def attempt(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run a command; returns the exit status."""
    try:
        try:
            with stop.at_once(False):
                return dispatch(arguments, terminal)
        except Exception as error:
            if (stopped := find_stopped(error)) is not None:
                raise stopped from None
            raise
    except CompressorError as error:
        terminal.fail(str(error))
        return FAILED
    except Stopped as error:
        terminal.fail(str(error))
        return error.exit_status
    except SystemExit as error:  # by Hydra, where it only shows something
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        if shows_whole():
            raise
        status, line = describe_failure(error)
        terminal.fail(line)
        return status
