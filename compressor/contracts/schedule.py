"""The contract of schedules: which trials to score and which plans to keep."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from compressor.contracts.compressor import Compressor
from compressor.contracts.guard import Guard, Guarded, name_plugin, show
from compressor.contracts.metric import Metric
from compressor.contracts.request_checks import RequestChecks
from compressor.contracts.requests import Oracle, Problem, Request, Search
from compressor.errors import PluginError


class Schedule(Guarded, ABC):
    """Decides which trials to score and which plans to keep. Torch-free; all randomness is from `problem.seed`.

    A schedule is a generator: it yields requests and receives their answers. `Dialogue` offers it as ask and tell. A
    search is a pure function of the problem and the answers, so its state is the list of answers so far.
    """

    _kind = "schedule"
    name: ClassVar[str]
    repeats: ClassVar[bool] = False
    """True if it only repeats earlier decisions. It then gets the components unfused."""

    @abstractmethod
    def search(self, problem: Problem) -> Search:
        """Yield requests until done; raises ConfigError before the first one if options do not fit the problem."""

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        """Raise ConfigError for options that suit no model. It is called before the model is loaded.

        `compressors` are the configured ones, `metrics` all that are installed.
        """

    def list_unused(self, problem: Problem) -> Mapping[str, str]:
        """Option -> what leaves it without effect, such as `{"step": "fixed levels"}`."""
        return {}

    def ranks_by(self) -> Sequence[str]:
        """Metrics that the search needs. They are configured even if the user does not select them."""
        return ()

    def limits_files(self) -> bool:
        """True if it limits the size of the exported files. Parts of one matrix are then fused for it."""
        return False


class Dialogue:
    """A schedule's search as ask and tell: `propose` returns the open request (None if done), `tell` answers it.

    >>> dialogue = Dialogue(schedule, problem)
    >>> while (request := dialogue.propose()) is not None:
    ...     dialogue.tell(request.ask(oracle))

    A dialogue that is given the first `answers` of a search continues after them, because a search depends only on the
    problem and the answers. It keeps none of them: estimates of a large model take much memory. Raises PluginError if
    the schedule yields something that is not a request, or a request that no oracle could answer.
    """

    def __init__(self, schedule: Schedule, problem: Problem, answers: Sequence[Any] = ()) -> None:
        self.owner = name_plugin(schedule)
        self._checks = RequestChecks(self.owner, problem, schedule.repeats)
        self._guard = Guard(schedule, "search")
        self._search = schedule.search(problem)
        if not isinstance(self._search, Generator):
            found = show(self._search)
            raise PluginError(f"`search` of {self.owner} gave {found}, which is no generator; `yield` requests")
        self._request = self._advance(lambda: next(self._search))
        for answer in answers:
            self.tell(answer)

    def propose(self) -> Request[Any] | None:
        return self._request

    def tell(self, answer: Any) -> None:  # noqa: ANN401 - each request says what its answer is
        if self._request is None:
            raise RuntimeError("the schedule is done and takes no more answers")
        self._request = self._advance(lambda: self._search.send(answer))

    def converse(self, oracle: Oracle) -> Iterator[Request[Any]]:
        """Let `oracle` answer until the schedule is done; yields each request before it is answered."""
        while (request := self._request) is not None:
            yield request
            self.tell(request.ask(oracle))

    def _advance(self, step: Callable[[], object]) -> Request[Any] | None:
        """The next request; None where the schedule is done."""
        try:
            request = step()
        except StopIteration:
            return None
        with self._guard:  # values in a request may have code of the plugin
            return self._checks.check(request)
