"""The command line: runs a command, and turns every failure into one line and an exit status.

0 done; 1 the user can fix it; 70 a bug of ours; 128 + signal stopped by SIGINT, SIGTERM or SIGHUP.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from compressor.commands.failures import FAILED, FULL_ERROR, describe_failure, shows_whole
from compressor.commands.forecast_command import forecast
from compressor.commands.plugins_command import list_plugins
from compressor.commands.results_place import require_working_directory
from compressor.commands.resume_command import resume
from compressor.commands.run_command import run
from compressor.commands.stopping import Stopped, find_stopped, stop
from compressor.commands.terminal import CleanFormatter, Terminal, protect_output
from compressor.errors import CompressorError, ConfigError, suggest

COMMANDS: dict[str, Callable[[Sequence[str], Terminal], int]] = {
    "run": run,
    "forecast": forecast,
    "resume": resume,
    "plugins": list_plugins,
}
HELP = {"--help", "-h"}
"""Flags that Hydra knows; the help of all commands is one page."""


def dispatch(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run a command; without one, `run`."""
    first = arguments[0] if arguments else ""
    if "--version" in arguments:
        terminal.say(f"compressor {version('compressor')}")
        return 0
    if first in ("resume", "plugins") and HELP & {*arguments}:
        return run(["--help"], terminal)
    if first in COMMANDS:
        return COMMANDS[first](arguments[1:], terminal)
    if first and "=" not in first and not first.startswith(("-", "+", "~")):
        raise ConfigError(f"unknown command `{first}`; {suggest(first, COMMANDS)}")
    return run(arguments, terminal)


def main() -> int:
    """Run the command line; returns the exit status."""
    output = protect_output()
    terminal = Terminal()
    if logging.lastResort is not None:  # shows warnings until Hydra has set up the log
        logging.lastResort.setFormatter(CleanFormatter())
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
                require_working_directory()
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
