"""The failures of a command: each one line, with the exit status that belongs to it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from compressor.commands.config import one_line
from compressor.commands.log_file import find_log
from compressor.commands.stopping import find_stopped
from compressor.commands.terminal import Terminal
from compressor.errors import CompressorError, ConfigError, list_causes
from compressor.resources import lacks_memory

FAILED, BUG = 1, 70
LESS_MEMORY = "lower sweep.batch or data.prefixes, add model.stream=true, or take a larger machine"
FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's own variable for tracebacks; --debug sets it."""

log = logging.getLogger(__name__)


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


def blame_hydra_settings(error: Exception) -> ConfigError:
    """What the user is told of an error that settings of Hydra cause."""
    reason = one_line(error) or "no message"
    kind = "" if isinstance(error, HydraException | OmegaConfBaseException) else f"{type(error).__name__}: "
    return ConfigError(f"Hydra cannot start with these settings: {kind}{reason}; check those of hydra.*")
