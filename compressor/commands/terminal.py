"""Output for a person: progress bars with the time left, lines for milestones, one line for an error."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


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
        self.console.print(message, markup=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        self.console.print(renderable)

    def fail(self, message: str) -> None:
        """The one line of an error, on stderr."""
        self.errors.print(f"error: {' '.join(message.split())}")
