"""What a recovery asks the trainer for is checked before any time is spent, in one line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from compressor.contracts import Loss, Reconstruction, Recovery, Trainer, Training, TrainingTexts
from compressor.contracts.declarations import name_option, read_training_texts
from compressor.contracts.training_requests import describe, list_requests
from compressor.errors import PluginError
from compressor_plugins.recovery.finetune import Finetune

TEXTS = TrainingTexts(4, 8)


@dataclass
class Asking(Recovery):
    """Does `ask` with the trainer."""

    ask: Any = None
    given: Any = TEXTS
    name: ClassVar[str] = "asking"

    def texts(self) -> TrainingTexts | None:
        found: TrainingTexts | None = self.given
        return found

    def recover(self, trainer: Trainer) -> None:
        return self.ask(trainer)  # type: ignore[no-any-return]


def training(**values: object) -> Callable[[Trainer], None]:
    return lambda trainer: trainer.train(Training(**{"steps": 3} | values))  # type: ignore[arg-type]


def reconstruction(**values: object) -> Callable[[Trainer], None]:
    return lambda trainer: trainer.reconstruct(Reconstruction(**{"steps": 3} | values))  # type: ignore[arg-type]


def solving(damping: Any) -> Callable[[Trainer], None]:  # noqa: ANN401 - what a plugin may give by mistake
    return lambda trainer: trainer.solve_least_squares(damping)


COUNT, SHARE = "give a whole number from 1 to 2147483647", "give a number from 0 to 1"
ABOVE, LEAST = "give a finite number above 0", "give a finite number of at least 0"
FIELDS: dict[str, tuple[str, list[object]]] = {
    "steps": (COUNT, ["3", -1, 0, 1.0, True, None, 10**400]),
    "batch": (COUNT, [0, "2", 2.0]),
    "learning_rate": (ABOVE, [math.nan, math.inf, 0, -1.0, "1e-3", True, None]),
    "warmup": (SHARE, [-0.1, 1.1, math.nan, "0.1"]),
    "weight_decay": (LEAST, [-1e-3, math.inf, "0"]),
}
ONLY_TRAINING: dict[str, tuple[str, list[object]]] = {
    "released": ("give a number from 0 to the 3 steps, of which these are the last", [4, -1]),
    "loss": ("give a member of Loss", ["x", "distillation", None, Loss]),
    "temperature": (ABOVE, [0, math.nan]),
    "mix": (SHARE, [1.5, -1, "1"]),
    "clip": (ABOVE, [0.0, math.inf]),
    "embeddings": ("give True or False", [1, None]),
    "checkpointing": ("give True or False", ["yes"]),
}
KINDS = (("Training", training, FIELDS | ONLY_TRAINING), ("Reconstruction", reconstruction, FIELDS))
CASES = [
    (kind, make, field, value, rule)
    for kind, make, table in KINDS
    for field, (rule, values) in table.items()
    for value in values
]


def refused(recovery: Recovery, number: int = 1) -> str:
    with pytest.raises(PluginError) as caught:
        list_requests(recovery, number)
    said = str(caught.value)
    assert said.isprintable() and f"recovery `asking` of {__name__}.Asking" in said
    return said


@pytest.mark.parametrize(("kind", "make", "field", "value", "rule"), CASES)
def test_a_wrong_value_is_one_line(kind: str, make: Any, field: str, value: object, rule: str) -> None:  # noqa: ANN401
    said = refused(Asking(make(**{field: value})))
    assert said.startswith(f"`recover() with {kind}.{field}` of ") and said.endswith(rule)
    assert repr(value)[:100] in said


@pytest.mark.parametrize("released", ["1", 1.0, True, None])
def test_released_steps_are_a_number(released: object) -> None:
    assert refused(Asking(training(released=released))).endswith("give a whole number of steps")


@pytest.mark.parametrize("damping", [-1, math.nan, math.inf, True, None, "x"])
def test_a_wrong_damping_is_one_line(damping: object) -> None:
    said = refused(Asking(solving(damping)))
    assert said.startswith("`recover() with solve_least_squares(damping)`") and said.endswith(LEAST)


@pytest.mark.parametrize("asked", ["x", None, {"steps": 3}, Training, 0.5, Reconstruction(3)])
def test_another_object_is_one_line(asked: Any) -> None:  # noqa: ANN401 - what a plugin may give by mistake
    assert refused(Asking(lambda trainer: trainer.train(asked))).endswith("give it a Training")
    assert refused(Asking(solving(Training(3)))).endswith(LEAST)


@pytest.mark.parametrize("make", [training, reconstruction])
def test_training_needs_texts(make: Any) -> None:  # noqa: ANN401 - one of two functions
    assert refused(Asking(make(), None)).endswith("training needs texts; give TrainingTexts")
    assert list_requests(Asking(solving(0.5), None)).asked == (0.5,)


WRONG_TEXTS: dict[str, list[object]] = {
    "windows": [0, "4", 4.0, True, None, 10**400],
    "tokens": [1, "8", None],
    "path": ["", 5],
    "dataset": ["", 5],
    "subset": [5],
    "split": ["", None],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG_TEXTS.items() for value in values]
)
def test_wrong_texts_are_one_line(field: str, value: object) -> None:
    given = TrainingTexts(**{"windows": 4, "tokens": 8} | {field: value})  # type: ignore[arg-type]
    assert refused(Asking(training(), given)).startswith(f"`texts().{field}` of ")


def ask_by_yield(trainer: Trainer) -> Any:  # noqa: ANN401
    yield trainer.train(Training(3))


async def ask_later(trainer: Trainer) -> None:
    trainer.train(Training(3))


class Yielding(Asking):
    def recover(self, trainer: Trainer) -> Any:  # noqa: ANN401 - a generator by mistake
        yield trainer.train(Training(3))


IDLE: dict[str, tuple[Any, str]] = {
    "nothing": (lambda trainer: None, "asks the trainer for nothing after round 1; call a method of the trainer in `r"),
    "a generator": (ask_by_yield, "call the methods of the trainer, without `yield` and `async`, else nothing is done"),
    "a coroutine": (ask_later, "call the methods of the trainer, without `yield` and `async`, else nothing is done"),
    "a request": (lambda trainer: Training(3), "it must return nothing; call the methods of the trainer"),
    "False": (lambda trainer: bool(trainer.train(Training(3))), "it must return nothing"),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_recovery_that_asks_for_nothing_is_one_line(case: str) -> None:
    ask, rule = IDLE[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that was never awaited
        assert rule in refused(Asking(ask))


def test_a_generator_that_the_class_makes_is_one_line() -> None:
    with pytest.raises(PluginError, match="without `yield` and `async`"):
        list_requests(Yielding())


def test_each_round_may_have_other_requests() -> None:
    def ask(trainer: Trainer) -> None:
        if trainer.round < 3:
            trainer.train(Training(steps=10 * trainer.round))

    assert [list_requests(Asking(ask), number).asked for number in (1, 2)] == [(Training(10),), (Training(20),)]
    assert "asks the trainer for nothing after round 3" in refused(Asking(ask), 3)


def test_what_differs_is_described() -> None:
    pair = Training(3, batch=2), Training(4, batch=2)
    assert [describe(*pair), describe(*pair[::-1])] == ["Training(steps=3)", "Training(steps=4)"]
    assert describe(Reconstruction(3), None).startswith("Reconstruction(steps=3, batch=8, ")
    assert [describe(0.5, None), describe(None, 0.5)] == ["solve_least_squares(0.5)", "nothing"]


def test_a_key_is_named_only_if_the_recovery_has_it() -> None:
    assert name_option(Finetune(), "tokens", "TrainingTexts") == "`recovery.tokens`"
    assert name_option(Asking(), "tokens", "TrainingTexts") == (
        f"`tokens` of the TrainingTexts of recovery `asking` of {__name__}.Asking"
    )
    assert read_training_texts(Asking()) == TEXTS
