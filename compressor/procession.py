"""The engine for models larger than memory: all trials go through the layers together, and each layer is read once.

What `Engine` computes is computed here too, in another order. A layer's weights are there for the current model, for
the trials that begin in it, and for all that are on their way; their hidden states wait on the host, or on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from compressor.batches import Batch, Found
from compressor.engine import Branch, Course, Engine, Trial, Weights, join_branches
from compressor.models.memo import Memo
from compressor.models.replay import Replay
from compressor.readout import Readout
from compressor.spill import Spill

WAITING = 1 << 32
"""Bytes of hidden states that wait in memory; more of them go to disk."""


class Procession(Engine):
    """Scores trials layer by layer; their statistics come at the end, all at once."""

    def __init__(self, replay: Replay, joint: int | None = None, waiting: int = WAITING) -> None:
        super().__init__(replay, joint)
        self.waiting = waiting

    def score(self, trials: Mapping[int, Trial], batches: Sequence[Batch]) -> Iterator[tuple[int, list[Found]]]:
        """What each trial gives on each batch, with its number."""
        beginning, underway = self.sort(trials), list[int]()
        courses = [self.enter(batch) for batch in batches]
        with Spill(self.waiting) as states:
            for index in range(len(self.replay.layers)):
                names = {name for name, (first, last) in self.replay.spans.items() if first <= index <= last}
                changing = [number for number in underway if not names.isdisjoint(trials[number].names)]
                for group in self.make_weights(trials, changing, names):
                    self._pass_changed(index, group, courses, states)
                self._pass_unchanged(index, [n for n in underway if n not in changing], courses, states)
                for group in self.make_weights(trials, beginning.get(index, []), names):
                    self._begin(index, group, courses, states)
                underway += beginning.pop(index, [])
                for course in courses if beginning else ():
                    self.advance(index, course)
            yield from self._read(underway, courses, states)

    def _begin(self, index: int, group: Mapping[int, Weights], courses: Sequence[Course], states: Spill) -> None:
        """Trials that first change this layer leave the model as it stands."""
        for place, course in enumerate(courses):
            memo = Memo(self.replay.layers[index])
            with memo.recording():
                course.following = self.replay.run(index, course.entries[1], course.hidden)
            for number, weights in group.items():
                with self.model.swapped(weights), memo.serving(self.find_owners(weights)):
                    states.put((place, number), self.replay.run(index, course.entries[1], course.hidden))

    def _pass_changed(self, index: int, group: Mapping[int, Weights], courses: Sequence[Course], states: Spill) -> None:
        """Trials that change this layer, and an earlier one, run it one by one."""
        for place, course in enumerate(courses):
            for number, weights in group.items():
                hidden = states.get((place, number)).to(self.model.device)
                with self.model.swapped(weights):
                    states.put((place, number), self.replay.run(index, course.entries[1], hidden))

    def _pass_unchanged(self, index: int, numbers: Sequence[int], courses: Sequence[Course], states: Spill) -> None:
        """The others run it together."""
        for place, course in enumerate(courses):

            def go_on(members: Sequence[Branch], place: int = place, course: Course = course) -> None:
                entry = self.repeat(course, len(members))
                hidden = self.replay.run(index, entry, join_branches(members))
                for (number, _), own in zip(members, hidden.split(len(course.batch.tokens)), strict=True):
                    states.put((place, number), own)

            for members in self._gather(place, numbers, states):
                self.fit(members, go_on)

    def _gather(self, place: int, numbers: Sequence[int], states: Spill) -> Iterator[list[Branch]]:
        """As many branches on a batch as may go together, back on the device."""
        start = 0
        while start < len(numbers):
            chosen = numbers[start : start + self.joint]
            start += len(chosen)
            yield [(number, states.get((place, number)).to(self.model.device)) for number in chosen]

    def _read(
        self, numbers: Sequence[int], courses: Sequence[Course], states: Spill
    ) -> Iterator[tuple[int, list[Found]]]:
        found: dict[int, list[Found]] = {number: [] for number in numbers}
        for place, course in enumerate(courses):
            with course.batch.opened() as read:

                def go_on(
                    members: Sequence[Branch], course: Course = course, read: Callable[[Readout], Found] = read
                ) -> None:
                    for number, candidate in self.leave(course, members, join_branches(members)):
                        found[number].append(read(candidate))

                for members in self._gather(place, numbers, states):
                    self.fit(members, go_on)
        yield from found.items()
