"""The contract of schedules: what to try and what to keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from compressor.contracts.requests import Oracle, Problem, Request, Search
from compressor.errors import PluginError


class Schedule(ABC):
    """Decides what to try and what to keep. Torch-free; all randomness from `problem.seed`.

    A schedule is written as a generator: it yields requests and receives their answers. `Dialogue` turns that into
    ask and tell, and, as a search is a pure function of the problem and the answers, its state is the answers so far.
    """

    name: ClassVar[str]
    repeats: ClassVar[bool] = False
    """Does it do what was decided elsewhere? It then gets every component as it is, even if some are fused."""

    @abstractmethod
    def search(self, problem: Problem) -> Search:
        """Yield requests until done; raises ConfigError before the first one where options do not fit the problem."""

    def ranks_by(self) -> Sequence[str]:
        """Metrics that the search itself asks for, so that they are configured even if nobody wants them reported."""
        return ()

    def limits_files(self) -> bool:
        """Does it limit the size of the exported files? It then decides for all parts of one matrix together."""
        return False


class Dialogue:
    """A schedule's search as ask and tell: `propose` gives the open request (None when done), `tell` answers it.

    >>> dialogue = Dialogue(schedule, problem)
    >>> while (request := dialogue.propose()) is not None:
    ...     dialogue.tell(request.ask(oracle))

    A search is a function of the problem and the answers so far, so a dialogue that is given the first `answers` goes
    on from there. Raises PluginError where the schedule yields something that is no request.
    """

    def __init__(self, schedule: Schedule, problem: Problem, answers: Sequence[Any] = ()) -> None:
        self.answers: list[Any] = []
        self._name = schedule.name
        self._search = schedule.search(problem)
        self._request = self._check(next(self._search, None))
        for answer in answers:
            self.tell(answer)

    def propose(self) -> Request[Any] | None:
        return self._request

    def tell(self, answer: Any) -> None:  # noqa: ANN401 - each request says what its answer is
        if self._request is None:
            raise RuntimeError("the schedule is done and takes no more answers")
        self.answers.append(answer)
        try:
            self._request = self._check(self._search.send(answer))
        except StopIteration:
            self._request = None

    def converse(self, oracle: Oracle) -> Iterator[Request[Any]]:
        """Let `oracle` answer until the schedule is done; yields each request before it is answered."""
        while (request := self._request) is not None:
            yield request
            self.tell(request.ask(oracle))

    def _check(self, request: object) -> Request[Any] | None:
        if request is None or isinstance(request, Request):
            return request
        raise PluginError(
            f"schedule `{self._name}` yielded {request!r}, which is no request; yield one of compressor.contracts"
        )
