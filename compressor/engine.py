"""Scores many trials in one walk over the layers: what they share is computed once, and nothing is approximate.

Layers before a trial's first change give what they give in the model as it stands, so the walk carries that along, and
a trial branches off at its first changed layer. There, modules that the change does not reach are not run again.
Behind its last changed layer a trial is a batch of hidden states like any other, and may go on together with others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from compressor.batches import Batch, Found
from compressor.leading import LeadingTokens
from compressor.models.memo import Memo
from compressor.models.replay import Entry, Replay
from compressor.readout import Readout

Weights = Mapping[str, Tensor]
"""Component name -> dense weight `[out, in]`."""

Branch = tuple[int, Tensor]
"""The number of a trial and its hidden states `[sequence, length, width]`."""

HELD = 1 << 28
"""Bytes of trial weights that are held at once; one trial may need more."""


@dataclass(frozen=True)
class Trial:
    """Weights to put on some components; `makers` give them, dense `[out, in]`, when they are needed."""

    makers: Mapping[str, Callable[[], Tensor]]

    @classmethod
    def of(cls, weights: Weights) -> Trial:
        """With weights that are there already."""
        return cls({name: partial(_give, weight) for name, weight in weights.items()})

    @property
    def names(self) -> list[str]:
        """The components that are changed."""
        return list(self.makers)

    def make(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The weights, or those of `names` only."""
        return {name: maker() for name, maker in self.makers.items() if names is None or name in names}


@dataclass
class Course:
    """A batch on its way through the layers: `hidden` is what enters the layer that the walk has come to."""

    batch: Batch
    hidden: Tensor
    entries: dict[int, Entry] = field(default_factory=dict)
    following: Tensor | None = None


class Engine:
    """Scores trials on `replay.model` as it stands; `joint` trials go on together behind their last change.

    On a CPU one at a time: the same kernels on the same shapes give the same bits as plain forward passes.
    """

    def __init__(self, replay: Replay, joint: int | None = None) -> None:
        self.replay, self.model = replay, replay.model
        self.joint = joint or (1 if self.model.device.type == "cpu" else 64)

    def takes(self, trial: Trial) -> bool:
        """Does the trial change layers, and nothing else?"""
        return bool(trial.names) and all(name in self.replay.spans for name in trial.names)

    def score(self, trials: Mapping[int, Trial], batches: Sequence[Batch]) -> Iterator[tuple[int, list[Found]]]:
        """What each trial gives on each batch, with its number; in the order of their first changed layers."""
        waiting = self.sort(trials)
        courses = [self.enter(batch) for batch in batches]
        for index in range(max(waiting, default=-1) + 1):
            for group in self.make_weights(trials, waiting.pop(index, [])):
                found: dict[int, list[Found]] = {number: [] for number in group}
                for course in courses:
                    self._branch_off(index, course, group, found)
                yield from found.items()
            for course in courses if waiting else ():
                self.advance(index, course)

    def enter(self, batch: Batch) -> Course:
        entry = self.replay.enter(batch.tokens)
        return Course(batch, entry.hidden, {1: entry})

    def advance(self, index: int, course: Course) -> None:
        """Bring the model as it stands behind a layer."""
        if course.following is None:
            course.following = self.replay.run(index, course.entries[1], course.hidden)
        course.hidden, course.following = course.following, None

    def repeat(self, course: Course, times: int) -> Entry:
        """The entry of so many branches together."""
        if times not in course.entries:
            course.entries[times] = self.replay.enter(course.batch.tokens.repeat(times, 1))
        return course.entries[times]

    def sort(self, trials: Mapping[int, Trial]) -> dict[int, list[int]]:
        """First changed layer -> numbers of trials."""
        waiting: dict[int, list[int]] = {}
        for number, trial in trials.items():
            waiting.setdefault(min(self.replay.spans[name][0] for name in trial.names), []).append(number)
        return waiting

    def make_weights(
        self, trials: Mapping[int, Trial], numbers: Sequence[int], names: Collection[str] | None = None
    ) -> Iterator[dict[int, Weights]]:
        """The weights of these trials, made once, as many at a time as may be held; all, or those of `names`."""
        group: dict[int, Weights] = {}
        held = 0
        for number in numbers:
            group[number] = trials[number].make(names)
            held += sum(weight.nbytes for weight in group[number].values())
            if held >= HELD:
                yield group
                group, held = {}, 0
        if group:
            yield group

    def _branch_off(
        self, index: int, course: Course, group: Mapping[int, Weights], found: Mapping[int, list[Found]]
    ) -> None:
        """Run trials that first change the layer `index` from there to their statistics."""
        if course.batch.only_leading and self.replay.splits:
            self._count_leading(index, course, group, found)
            return
        memo, entry = Memo(self.replay.layers[index]), course.entries[1]
        with memo.recording():
            course.following = self.replay.run(index, entry, course.hidden)
        changed: dict[int, list[Branch]] = {}
        with course.batch.opened() as read:
            for number, weights in group.items():
                last = max(self.replay.spans[name][1] for name in weights)
                with self.model.swapped(weights):
                    with memo.serving(self.find_owners(weights)):
                        hidden = self.replay.run(index, entry, course.hidden)
                    for later in range(index + 1, last + 1):
                        hidden = self.replay.run(later, entry, hidden)
                together = changed.setdefault(last, [])
                together.append((number, hidden))
                if len(together) >= self.joint:
                    self._finish(last + 1, course, changed.pop(last), read, found)
            for last, together in changed.items():
                self._finish(last + 1, course, together, read, found)

    def _count_leading(
        self, index: int, course: Course, group: Mapping[int, Weights], found: Mapping[int, list[Found]]
    ) -> None:
        """The same where only the first divergence is asked for."""
        batch = course.batch
        leading = LeadingTokens(self.replay, index, batch.tokens, course.hidden, batch.said)
        with batch.opened() as read:
            for number, weights in group.items():
                with self.model.swapped(weights):
                    count = leading.count(self.find_owners(weights))
                found[number].append(read(Readout(_refuse_logits, batch.said, leading=count)))

    def find_owners(self, weights: Weights) -> set[nn.Module]:
        return {self.model.slots[name].owner for name in weights}

    def _finish(
        self,
        index: int,
        course: Course,
        together: Sequence[Branch],
        read: Callable[[Readout], Found],
        found: Mapping[int, list[Found]],
    ) -> None:
        """Run branches on through the layers from `index`, which they leave as they are, and read what they say."""

        def go_on(members: Sequence[Branch]) -> None:
            entry, hidden = self.repeat(course, len(members)), join_branches(members)
            for later in range(index, len(self.replay.layers)):
                hidden = self.replay.run(later, entry, hidden)
            for number, candidate in self.leave(course, members, hidden):
                found[number].append(read(candidate))

        self.fit(together, go_on)

    def leave(self, course: Course, members: Sequence[Branch], hidden: Tensor) -> Iterator[tuple[int, Readout]]:
        """What each of the branches says, from what the last layer gave for all of them."""
        batch = course.batch
        logits = self.replay.leave(self.repeat(course, len(members)), hidden, batch.said.shape[1])
        for (number, _), own in zip(members, logits.split(len(batch.tokens)), strict=True):
            yield number, Readout(own, batch.said, batch.counted)

    def fit(self, members: Sequence[Branch], work: Callable[[Sequence[Branch]], None]) -> None:
        """Do the work for all members together, or in halves where memory does not hold it; that is remembered."""
        try:
            work(members)
        except torch.OutOfMemoryError:
            if len(members) == 1:
                raise
            half = self.joint = (len(members) + 1) // 2
            torch.cuda.empty_cache()
            self.fit(members[:half], work)
            self.fit(members[half:], work)


def join_branches(members: Sequence[Branch]) -> Tensor:
    """`[branch * sequence, length, width]`"""
    return torch.cat([hidden for _, hidden in members]) if len(members) > 1 else members[0][1]


def _give(weight: Tensor) -> Tensor:
    return weight


def _refuse_logits() -> Tensor:
    raise AssertionError("only leading tokens were counted")
