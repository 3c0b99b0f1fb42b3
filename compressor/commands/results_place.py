"""Where a command writes: the folder is chosen, checked and held before anything starts."""

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from compressor.artifacts.folder_check import check_folder
from compressor.artifacts.folder_lock import held_folder
from compressor.commands.checked_overrides import (
    check_sweeps,
    choose_compressors,
    complete_overrides,
    find_inputs,
    find_varied,
)
from compressor.commands.command_record import FOLDER_KEYS, Jobs, check_jobs, describe_jobs
from compressor.commands.config import add_overrides, one_line, open_hydra, parse_arguments, replace_overrides
from compressor.commands.failures import blame_hydra_settings, shows_whole
from compressor.commands.hydra_outputs import check_outputs
from compressor.commands.overrides import quote
from compressor.commands.terminal import LenientStream
from compressor.errors import CompressorError, ConfigError, OutputError
from compressor.plugins import Plugins

log = logging.getLogger(__name__)


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


def require_working_directory() -> None:
    """Raise OutputError where the working directory was removed, to which all relative paths belong."""
    try:
        os.getcwd()
    except OSError as error:
        raise OutputError(f"the working directory cannot be read: {error.strerror}; change to another one") from None
