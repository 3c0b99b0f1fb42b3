"""How long work tells that it goes on; the library is silent unless somebody listens."""

from collections.abc import Iterable, Iterator
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


class Silent:
    """Shows nothing."""

    def track(self, steps: Iterable[T], description: str, total: int) -> Iterator[T]:
        yield from steps

    def say(self, message: str) -> None:
        return None
