"""Output for a person: progress bars with the time left, lines for milestones, one line for an error.

Output that cannot be shown (a closed pipe, a full disk, a terminal without Unicode) never stops the work.
"""

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

T = TypeVar("T")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that command a terminal, or change the direction of text; not tab and newline."""


def clean(text: str) -> str:
    """The text with its control characters shown as escapes: names of files and models come from outside."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class CleanFormatter(logging.Formatter):
    """Formats lines of a log with control characters as escapes, in files too: they are shown on terminals."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


class Clean:
    """A table or another renderable whose text has its control characters as escapes."""

    def __init__(self, renderable: RenderableType) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)


class LenientStream(io.TextIOBase):
    """A text stream that replaces what its encoding lacks, and swallows everything after a failure to write."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        if self.failure is None:
            shown = text.encode(self.encoding, errors="replace").decode(self.encoding)
            self._try(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            self._try(self.stream.flush)

    def isatty(self) -> bool:
        return self.failure is None and self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            self.failure = error
            # What is left in the buffer would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def protect_output() -> LenientStream:
    """Put lenient streams in place of stdout and stderr, for whatever prints; returns that of stdout."""
    output = LenientStream(sys.stdout)
    sys.stdout, sys.stderr = output, LenientStream(sys.stderr)
    return output


class Terminal:
    """Progress on a terminal or in a notebook; anywhere else, milestones only."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def track(self, steps: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield `steps` and show a bar, which disappears when they are done."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        shows = self.console.is_terminal or self.console.is_jupyter
        bar = Progress(*columns, console=self.console, transient=True, disable=not shows)
        with bar:
            yield from bar.track(steps, total=total, description=description)

    def say(self, message: str) -> None:
        self.console.print(clean(message), markup=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        self.console.print(Clean(renderable))

    def fail(self, message: str) -> None:
        """The one line of an error, on stderr."""
        self.errors.print(f"error: {clean(' '.join(message.split()))}")
