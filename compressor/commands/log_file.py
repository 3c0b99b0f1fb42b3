"""The log of a run as a file. A disk that is full ends the log, and never the run."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compressor.commands.terminal import CleanFormatter

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFile(logging.FileHandler):
    """A file of log lines. The first failure to write is one line on stderr; after that nothing is written."""

    is_given_up = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.is_given_up:
            return
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.is_given_up = True
        sys.stderr.write(f"WARNING: {self.baseFilename} cannot be written: {error.strerror}; the run goes on\n")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Inside, all that is logged goes to the file `path` too, which the first line opens."""
    file, root = LogFile(path, encoding="utf-8", delay=True), logging.getLogger()
    file.setFormatter(CleanFormatter(FORMAT))
    root.addHandler(file)
    try:
        yield
    finally:
        root.removeHandler(file)
        with suppress(OSError):  # a disk that is full, of which a line was said
            file.close()


def find_log() -> Path | None:
    """The file to which all that is logged goes now; None if there is none."""
    found = (handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, LogFile))
    return next(map(Path, found), None)
