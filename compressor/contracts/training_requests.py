"""What a recovery asks the trainer for after a round: noted by a trainer that does nothing, and checked. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field, fields
from typing import Any

from compressor.contracts.declarations import LARGEST, read_training_texts, refuse
from compressor.contracts.guard import name_plugin, show
from compressor.contracts.recovery import Loss, Reconstruction, Recovery, Training, TrainingTexts
from compressor.contracts.request_checks import is_integer, is_number
from compressor.errors import PluginError

Asked = Training | Reconstruction | float
"""One request to the trainer; a number is the damping of `solve_least_squares`."""
Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and the rule for an error."""

COUNT: Rule = (lambda v: is_integer(v) and 1 <= v <= LARGEST, f"give a whole number from 1 to {LARGEST}")
FROM_0: Rule = (lambda v: is_number(v) and math.isfinite(v) and v >= 0, "give a finite number of at least 0")
ABOVE_0: Rule = (lambda v: is_number(v) and math.isfinite(v) and v > 0, "give a finite number above 0")
SHARE: Rule = (lambda v: is_number(v) and 0 <= v <= 1, "give a number from 0 to 1")
FLAG: Rule = (lambda v: isinstance(v, bool), "give True or False")
RULES: dict[str, Rule] = {
    "steps": COUNT,
    "released": (is_integer, "give a whole number of steps"),
    "batch": COUNT,
    "loss": (lambda v: isinstance(v, Loss), "give a member of Loss"),
    "temperature": ABOVE_0,
    "mix": SHARE,
    "learning_rate": ABOVE_0,
    "warmup": SHARE,
    "weight_decay": FROM_0,
    "clip": ABOVE_0,
    "embeddings": FLAG,
    "checkpointing": FLAG,
}
"""The rules for the fields of `Training` and `Reconstruction`."""


@dataclass
class NotingTrainer:
    """A trainer that only notes what it is asked for after the round `round`."""

    round: int = 1
    asked: list[Asked] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)

    def train(self, training: Training) -> None:
        self._note("train", training)

    def reconstruct(self, reconstruction: Reconstruction) -> None:
        self._note("reconstruct", reconstruction)

    def solve_least_squares(self, damping: float) -> None:
        self._note("solve_least_squares", damping)

    def _note(self, method: str, asked: Asked) -> None:
        self.methods.append(method)
        self.asked.append(asked)


@dataclass(frozen=True)
class TrainingRequests:
    """All that a recovery asks for after the round `round`, in its order, and its texts."""

    round: int
    asked: tuple[Asked, ...]
    texts: TrainingTexts | None


def list_requests(recovery: Recovery, number: int = 1) -> TrainingRequests:
    """What a recovery asks for after a round; raises PluginError for nothing, and for what no trainer can do."""
    texts, trainer = read_training_texts(recovery), NotingTrainer(number)
    found: object = recovery.recover(trainer)  # a plugin may return anything
    if isinstance(found, Coroutine):
        found.close()
    if isinstance(found, Generator | Coroutine):
        rule = "call the methods of the trainer, without `yield` and `async`, else nothing is done"
        refuse(recovery, "recover()", found, rule)
    if found is not None:
        refuse(recovery, "recover()", found, "it must return nothing; call the methods of the trainer")
    for method, asked in zip(trainer.methods, trainer.asked, strict=True):
        check_request(recovery, method, asked, texts)
    if not trainer.asked:
        raise PluginError(
            f"{name_plugin(recovery)} asks the trainer for nothing after round {number}; call a method of the trainer "
            "in `recover`, or leave the recovery out"
        )
    return TrainingRequests(number, tuple(trainer.asked), texts)


def check_request(recovery: Recovery, method: str, asked: object, texts: TrainingTexts | None) -> None:
    """Raise PluginError for an argument of a method of the trainer that no trainer can follow."""
    if method == "solve_least_squares":
        check_value(recovery, "solve_least_squares(damping)", asked, FROM_0)
        return
    kind: type[Training | Reconstruction] = Training if method == "train" else Reconstruction
    if not isinstance(asked, kind):
        refuse(recovery, f"recover() with {method}()", asked, f"give it a {kind.__name__}")
    for option in fields(kind):
        check_value(recovery, f"{kind.__name__}.{option.name}", getattr(asked, option.name), RULES[option.name])
    if isinstance(asked, Training) and not 0 <= asked.released <= asked.steps:
        rule = f"give a number from 0 to the {asked.steps} steps, of which these are the last"
        refuse(recovery, "recover() with Training.released", asked.released, rule)
    if texts is None:
        refuse(recovery, "texts()", None, "training needs texts; give TrainingTexts")


def check_value(recovery: Recovery, place: str, value: object, rule: Rule) -> None:
    allows, text = rule
    if not allows(value):
        refuse(recovery, f"recover() with {place}", value, text)


def require_same(recovery: Recovery, what: str, before: object, now: object) -> None:
    """Raise PluginError unless a recovery asks for the same as before; both are requests or texts, or None."""
    if now != before:
        raise PluginError(
            f"{name_plugin(recovery)} asks for {describe(now, before)} {what}, and asked before for "
            f"{describe(before, now)}; all that it asks for must follow from its options and `trainer.round`"
        )


def describe(asked: object, other: object) -> str:
    """A request or texts for one line, with the fields that differ from those of the other one."""
    if asked is None:
        return "nothing"
    if not isinstance(asked, Training | Reconstruction | TrainingTexts):
        return f"solve_least_squares({show(asked)})"
    names = [each.name for each in fields(asked)]
    if type(asked) is type(other):
        names = [name for name in names if getattr(asked, name) != getattr(other, name)]
    return f"{type(asked).__name__}({', '.join(f'{name}={show(getattr(asked, name))}' for name in names)})"
