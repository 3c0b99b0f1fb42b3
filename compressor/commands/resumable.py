"""Which recorded arguments `compressor resume` takes: the folder may come from somebody else, so none may run code."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override

from compressor.artifacts.folder_check import describe_copy, find_uncopied
from compressor.artifacts.run_files import HYDRA_FOLDER, MARK, is_unused, list_jobs
from compressor.artifacts.run_status import read_status
from compressor.commands.checked_overrides import parse_overrides
from compressor.commands.config import parse_arguments
from compressor.errors import ConfigError, OutputError

HARMLESS = frozenset(
    ["hydra.run.dir", "hydra.sweep.dir", "hydra.job.chdir", "hydra.mode", "hydra.verbose", "hydra/launcher"]
)
"""Keys and groups of Hydra that name no code, no environment, and no file outside of the folder of results."""
FLAGS = frozenset(["-m", "--multirun", "-r", "--run"])
"""Flags of Hydra with which something is run, and not only shown."""
ARGUMENTS = "arguments.json"
"""The record of how a run was started, beside Hydra's own."""
TRUST = "model.trust_remote_code"
"""The key that lets code in a model's folder run."""


def check_harmless(arguments: Sequence[str], trusted: Sequence[str], record: Path) -> None:
    """Raise OutputError for arguments of the file `record` that could run code and are not among the `trusted` ones.

    Raises ConfigError for a trusted one that is not recorded: what is resumed is not changed.
    """
    if added := [argument for argument in trusted if argument not in arguments]:
        raise ConfigError(
            f"`compressor resume` takes a folder, resume.accept=[…], and arguments of {record}, got "
            f"{shlex.join(added)}; an interrupted run keeps its settings: leave that out, or start another run with it"
        )
    try:
        given = parse_arguments(arguments).overrides
        overrides = parse_overrides(given)
        if others := sorted({*arguments} - {*given} - FLAGS):
            raise ConfigError(f"no run is started with {shlex.join(others)}")
    except ConfigError as error:
        raise OutputError(f"{record} is damaged ({error}); start the command again by hand") from None
    risky = [override.input_line or "" for override in overrides if may_run_code(override)]
    if refused := [line for line in risky if line not in trusted]:
        folder = str(record.parents[1])
        raise OutputError(
            f"`compressor resume` does not take {shlex.join(refused)} from {record}, because it can run code or read "
            f"the environment; if you trust it, give it again: {shlex.join(['compressor', 'resume', folder, *risky])}"
        )


def explain_no_arguments(folder: Path) -> str:
    """Why there is nothing to go on with in a folder without recorded arguments, and what to do."""
    multirun = folder.absolute().parent
    if (multirun / HYDRA_FOLDER / ARGUMENTS).is_file() and folder.absolute() in list_jobs(multirun):
        again = shlex.join(["compressor", "resume", str(multirun)])
        return f"{folder} is a job of the multirun in {multirun}, which goes on as a whole; use {again}"
    command = read_status(folder).get("command")
    if command is None and folder.is_dir() and (missing := find_uncopied(folder)):  # of a multirun
        return describe_copy(folder, missing)
    if not isinstance(command, str):
        if is_unused(folder) and (folder / MARK).is_file():
            return f"{folder} holds a run that was stopped before it did anything; start its command again"
        return f"{folder} holds no run that can go on; give the folder of an interrupted `compressor run`"
    is_forecast = command.startswith(("compressor forecast", "compressor.forecast"))
    if not is_forecast and HYDRA_FOLDER in (missing := find_uncopied(folder)):
        return describe_copy(folder, missing)
    what = "a forecast, which does not go on" if is_forecast else "a run that was not started by `compressor run`"
    again = f": {command}" if is_harmless(command) else ""
    return f"{folder} holds {what}; start it again{again}"


def is_harmless(command: str) -> bool:
    """Whether a recorded command may be shown as advice: it could come from somebody else, and run code."""
    try:
        _, _, *arguments = shlex.split(command)
        return not any(map(may_run_code, parse_overrides(parse_arguments(arguments).overrides)))
    except (ValueError, ConfigError):
        return False


def may_run_code(override: Override) -> bool:
    """Whether an override can run code, by a `_target_`, by Hydra's settings or a model's folder, or read a secret."""
    key, line = override.key_or_group, override.input_line or ""
    if "_target_" in line or "${oc." in line:
        return True
    if key == TRUST:
        return bool(override.is_sweep_override() or override.value() is not False)
    return key.partition(".")[0].partition("/")[0] == "hydra" and key not in HARMLESS
