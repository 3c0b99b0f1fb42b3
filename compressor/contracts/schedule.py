"""The contract of schedules: what to try and what to keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from compressor.contracts.requests import Problem, Request, Search


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
    """Ask and tell: `propose` gives the open request (None when done), `tell` answers it.

    >>> dialogue = Dialogue(schedule, problem)
    >>> while (request := dialogue.propose()) is not None:
    ...     dialogue.tell(answer(request))
    """

    def __init__(self, schedule: Schedule, problem: Problem, answers: Sequence[Any] = ()) -> None:
        self.answers: list[Any] = []
        self._search = schedule.search(problem)
        self._request: Request | None = next(self._search, None)
        for answer in answers:
            self.tell(answer)

    def propose(self) -> Request | None:
        return self._request

    def tell(self, answer: Any) -> None:  # noqa: ANN401 - each request says what its answer is
        if self._request is None:
            raise RuntimeError("the schedule is done and takes no more answers")
        self.answers.append(answer)
        try:
            self._request = self._search.send(answer)
        except StopIteration:
            self._request = None
