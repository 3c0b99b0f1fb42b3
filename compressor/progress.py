"""Progress of long work. The library shows nothing by default; the command line passes a display."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Shows the progress of a phase to the user."""

    def track(self, steps: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield the steps one by one; there are `total`."""
        ...

    def say(self, message: str) -> None:
        """Print one line about a milestone."""
        ...


def watch(progress: Progress, description: str, work: Callable[[], T]) -> T:
    """The result of `work`, shown as one step."""
    (result,) = progress.track((work() for _ in range(1)), description, 1)
    return result


class Silent:
    """Shows nothing."""

    def track(self, steps: Iterable[T], description: str, total: int) -> Iterator[T]:
        yield from steps

    def say(self, message: str) -> None:
        return None
