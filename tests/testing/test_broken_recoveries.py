"""Each promise of the contract suite of recoveries fails for a recovery that breaks it, and a run names the plugin."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compressor.contracts import Recovery, Trainer, Training, TrainingTexts
from compressor.errors import PluginError
from compressor.testing import RecoveryContract
from compressor_plugins.schedules.uniform import Uniform
from tests.support.runs import make_settings, run


@dataclass
class Mutant(Recovery):
    """A recovery that breaks one promise."""

    steps: int = 2
    name: ClassVar[str] = "mutant"

    def texts(self) -> TrainingTexts | None:
        return TrainingTexts(4, 8)

    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(self.steps, batch=2))


class Idle(Mutant):
    def recover(self, trainer: Trainer) -> None:
        pass


class Fickle(Mutant):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(random.randint(1, 10**9), batch=2))


class Growing(Mutant):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(2, batch=2))
        self.steps += 1


class Textless(Mutant):
    def texts(self) -> TrainingTexts | None:
        return None


class Impossible(Mutant):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(0))


class OddTexts(Mutant):
    def texts(self) -> Any:  # noqa: ANN401 - what a plugin may give by mistake
        return "a text"


class OddTraining(Mutant):
    def recover(self, trainer: Any) -> None:  # noqa: ANN401 - used in a wrong way
        trainer.train({"steps": 3})


class Failing(Mutant):
    def recover(self, trainer: Trainer) -> None:
        raise KeyError("learning rate")


class Infinite(Mutant):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(replace(Training(2, batch=2), learning_rate=float("nan")))


class Numpy(Mutant):
    def recover(self, trainer: Trainer) -> None:
        import torch  # noqa: F401 - what it must not do

        trainer.train(Training(2, batch=2))


PROMISES = {
    Idle: "test_it_asks_for_something_after_each_round",
    Fickle: "test_it_asks_for_the_same_each_time",
    Growing: "test_it_asks_for_the_same_each_time",
    Textless: "test_training_has_texts",
    Impossible: "test_what_it_asks_for_is_possible",
    OddTexts: "test_what_it_asks_for_is_possible",
    OddTraining: "test_what_it_asks_for_is_possible",
    Failing: "test_it_asks_for_the_same_each_time",
    Infinite: "test_what_it_asks_for_is_possible",
    Numpy: "test_needs_no_torch",
}


@pytest.mark.parametrize("mutant", PROMISES, ids=lambda cls: cls.__name__)
def test_each_broken_promise_is_found(mutant: type[Mutant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, promise = RecoveryContract(), PROMISES[mutant]
    extra = {"test_what_it_asks_for_is_possible": (tmp_path,), "test_needs_no_torch": (monkeypatch,)}.get(promise, ())
    with pytest.raises((AssertionError, PluginError)):
        getattr(suite, promise)(mutant(), *extra)


@pytest.mark.parametrize("mutant", [Impossible, OddTexts, OddTraining, Failing, Infinite, Textless])
def test_a_run_names_the_plugin_before_the_search(mutant: type[Mutant], tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="recovery `mutant` of tests") as caught:
        run(tmp_path / "out", replace(make_settings(Uniform(targets=(0.5,))), recovery=mutant()))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "scores.jsonl").exists()
