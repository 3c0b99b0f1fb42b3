"""`compressor resume`: goes on with an interrupted run or multirun."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

from compressor.artifacts.run_status import DONE, read_status
from compressor.commands.command_record import RESUME, find_directory, read_arguments
from compressor.commands.config import add_overrides
from compressor.commands.lost_results import warn_of_lost
from compressor.commands.run_command import run
from compressor.commands.terminal import Terminal
from compressor.errors import ConfigError


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
        if trusted:
            raise ConfigError(
                f"the run in {folder} is done, and {shlex.join(trusted)} changes nothing in it; leave that out, or "
                "start another run with it"
            )
        warn_of_lost(folder)
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
