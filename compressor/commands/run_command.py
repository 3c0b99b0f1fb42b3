"""`compressor run`: one run, or a multirun with a table that compares its jobs."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from compressor.artifacts.files import FullDisk
from compressor.artifacts.run_files import STATE, STATUS, list_jobs, list_stored
from compressor.artifacts.run_status import DONE, read_status
from compressor.commands.command_record import write_command
from compressor.commands.config import import_plugins, read_config, store_schemas
from compressor.commands.failures import Failures
from compressor.commands.hydra_launch import launch
from compressor.commands.job_files import recorded_job
from compressor.commands.results_place import Place, choose_place, hold, showing
from compressor.commands.stopping import Stopped, stop
from compressor.commands.terminal import Terminal
from compressor.commands.together import leading
from compressor.plugins import Plugins


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
    job = make_job(plugins, terminal, failures, place, command, asked, lambda: record_command(place, arguments))
    if place.folder is None:
        with showing():
            launch(place, job)
        return failures.status
    with hold(place):
        if not list_stored(place.folder / STATE):  # else the run that was interrupted may be another one
            record_command(place, arguments)
        with failures.caught(place.folder):
            launch(place, job)
        if place.multirun and any((folder / STATUS).is_file() for folder in list_jobs(place.folder)):
            with failures.caught(place.folder), naming_multirun(place):
                show_comparison(place.folder, failures.lines, asked, terminal)
    return failures.status


def record_command(place: Place, arguments: Sequence[str]) -> None:
    """Write how the run or the multirun was started, for `compressor resume`."""
    assert place.folder is not None, "without a folder, Hydra only shows something"
    write_command(place.folder, arguments, place.jobs)


def make_job(
    plugins: Plugins,
    terminal: Terminal,
    failures: Failures,
    place: Place,
    command: str,
    asked: dict[str, list[str]],
    on_begin: Callable[[], None],
) -> Callable[[DictConfig], float | None]:
    """The function that Hydra calls for each configuration. It returns the first metric, for Hydra's optimisers.

    It puts the overrides of each job into `asked`, by the name of its folder. `on_begin` is called when a single run
    has its folder, and was not refused.
    """

    def job(config: DictConfig) -> float | None:
        folder, overrides = Path(HydraConfig.get().runtime.output_dir), list(HydraConfig.get().overrides.task)
        alone, asked[folder.name] = not place.multirun, overrides
        if not alone:
            terminal.say(f"job {HydraConfig.get().job.num}: {' '.join(overrides)}")
        prefix = "" if alone else f"job {HydraConfig.get().job.num}: "
        is_done = not alone and read_status(folder).get("status") == DONE
        writing = nullcontext() if is_done else recorded_job(folder, config)  # nothing is changed in a finished job
        # The inner one writes to the log of the job, the outer one is for a job that cannot write.
        with shown_failures(failures, place, folder, prefix), writing, shown_failures(failures, place, folder, prefix):
            with stop.at_once():
                from compressor.commands.finished_jobs import find_finished
                from compressor.commands.run import execute
                from compressor.report import summarize_run
                from compressor.tracking.run_label import make_label

            settings, plain = read_config(config)
            if not alone and (value := find_finished(folder, settings, plugins, plain)) is not None:
                terminal.say(f"{prefix}was done before")
                return value
            label = make_label(
                overrides, place.varied, settings.schedule.name, place.folder if place.multirun else None
            )
            record = execute(settings, plugins, folder, plain, command, terminal, label, on_begin if alone else None)
            terminal.show(summarize_run(record))
            terminal.say(f"report: {folder / 'report.html'}")
            scores = list(record.final.scores.values()) if record.final else []
            return scores[0].mean if scores else None
        return None

    return job


@contextmanager
def shown_failures(failures: Failures, place: Place, folder: Path, prefix: str) -> Iterator[None]:
    """A failure of a job in `folder` is one line. After a full disk its multirun goes on, if it is part of one."""
    with failures.caught(folder, prefix), naming_multirun(place):
        yield


@contextmanager
def naming_multirun(place: Place) -> Iterator[None]:
    """What stops a job, a signal or a full disk, stops its multirun: that is what goes on, and not the job alone."""
    try:
        yield
    except (Stopped, FullDisk) as error:
        if place.multirun and place.folder is not None:
            error.folder = place.folder.absolute()
        raise


def show_comparison(
    folder: Path, failures: Mapping[str, str], asked: Mapping[str, list[str]], terminal: Terminal
) -> None:
    """Show and write the table of a multirun, failed jobs included; `failures` and `asked` are those of this start."""
    from compressor.report.comparison import make_comparison_table, read_jobs, write_comparison

    terminal.show(make_comparison_table(read_jobs(folder, failures, asked)))  # first, because the disk may be full
    write_comparison(folder, failures, asked)
    terminal.say(f"comparison: {folder / 'comparison.json'}")
