"""The interface for showing progress; the library itself shows nothing."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Shows steps of a phase to a person."""

    def track(self, steps: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Yield `steps` one by one, of `total`."""
        ...

    def say(self, message: str) -> None:
        """One line about a milestone."""
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
