"""The log of a run as a file. A disk that is full ends the log, and never the run."""

import logging
import sys


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
