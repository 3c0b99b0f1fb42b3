"""Each promise of the contract suite of recoveries fails for a recovery that breaks it, and a run names the plugin."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compressor.commands import text_cost
from compressor.contracts import Recovery, Trainer, Training, TrainingTexts
from compressor.contracts.training_requests import NotingTrainer
from compressor.errors import ConfigError, ModelError, PluginError
from compressor.models import load_model
from compressor.recovery.training_cost import count_cost
from compressor.resources import Memory
from compressor.settings import Device, ModelSettings
from compressor.testing import RecoveryContract
from compressor_plugins.schedules.uniform import Uniform
from tests.support.runs import make_settings, run
from tests.support.slow import rarely, rarely_cases


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


@pytest.mark.parametrize("mutant", [Idle, *rarely([Impossible, OddTexts, OddTraining, Failing, Infinite, Textless])])
def test_a_run_names_the_plugin_before_the_model_is_loaded(
    mutant: type[Mutant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.commands.setup.load_model", None)
    with pytest.raises(PluginError, match="recovery `mutant` of tests") as caught:
        run(tmp_path / "out", replace(make_settings(Uniform(targets=(0.5,))), recovery=mutant()))
    assert "\n" not in str(caught.value)


class Counting(Mutant):
    """Counts the calls of `recover` of all instances."""

    calls: ClassVar[int] = 0

    def count(self, trainer: Trainer) -> int:
        """Calls by a trainer that trains; the others only note."""
        cls = type(self)
        cls.calls += not isinstance(trainer, NotingTrainer)
        return cls.calls


class More(Counting):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(2 + self.count(trainer), batch=2))


class Further(Counting):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(2, batch=2))
        if self.count(trainer):
            trainer.solve_least_squares(0.5)


class Less(Counting):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(2, batch=2))
        if not self.count(trainer):
            trainer.solve_least_squares(0.5)


class Wrong(Counting):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(2, batch=2 - 2 * self.count(trainer)))


class Later(Counting):
    """Asks for something else at each call, by whichever trainer."""

    def recover(self, trainer: Trainer) -> None:
        type(self).calls += 1
        trainer.train(Training(self.calls, batch=2))


class OtherTexts(Counting):
    def texts(self) -> TrainingTexts | None:
        type(self).calls += 1
        return TrainingTexts(self.calls, 8)


DIFFERENT = {
    More: r"asks for Training\(steps=3\) after round 1, and asked before for Training\(steps=2\); all that it asks for",
    Further: r"asks for solve_least_squares\(0\.5\) after round 1, and asked before for nothing; all",
    Less: r"asks for nothing after round 1, and asked before for solve_least_squares\(0\.5\); all",
    Wrong: r"`recover\(\) with Training\.batch` of recovery `mutant` of .* is 0; give a whole number",
    Later: r"asks for Training\(steps=\d\) after round 1, and asked before for Training\(steps=\d\); all that",
    OtherTexts: r"asks for TrainingTexts\(windows=\d\) as its texts, and asked before for TrainingTexts\(windows=\d\);",
}


@pytest.mark.parametrize("mutant", [More, OtherTexts, *rarely([Further, Less, Wrong, Later])])
def test_other_requests_than_before_are_one_line(mutant: type[Counting], tmp_path: Path) -> None:
    mutant.calls = 0
    with pytest.raises(PluginError, match=DIFFERENT[mutant]) as caught:
        run(tmp_path / "out", replace(make_settings(Uniform(targets=(0.5,))), recovery=mutant()))
    assert "recovery `mutant` of tests" in str(caught.value)


class ByRound(Mutant):
    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(self.steps * trainer.round, batch=2))


def test_each_round_may_have_a_training_of_its_own(tmp_path: Path) -> None:
    record = run(tmp_path / "out", replace(make_settings(Uniform(targets=(0.3, 0.5))), recovery=ByRound()))
    assert [step.recovery.points[-1].step for step in record.rounds if step.recovery] == [2, 4]


def test_the_cost_is_that_of_every_round(tmp_path: Path) -> None:
    model = load_model(ModelSettings(device=Device.cpu))
    one, two, both = (count_cost(ByRound(), model, rounds).passes for rounds in ((1,), (2,), (1, 2)))
    assert two == 2 * one and both == 3 * one


@dataclass
class Diverging(Mutant):
    """Has no options of a training."""

    def recover(self, trainer: Trainer) -> None:
        trainer.train(Training(2, batch=2, learning_rate=1e30, warmup=0.5))


@dataclass
class Configured(Diverging):
    learning_rate: float = 1e30


@pytest.mark.parametrize(
    ("mutant", "advice"),
    [
        (Diverging, r"lower `learning_rate` of the Training of recovery `mutant` of tests\..*\.Diverging"),
        *rarely_cases([(Configured, r"lower `recovery\.learning_rate`")]),
    ],
)
def test_advice_names_what_the_plugin_has(mutant: type[Mutant], advice: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"is not finite .*, with the learning rate 1e\+30; {advice}$"):
        run(tmp_path / "out", replace(make_settings(Uniform(targets=(0.5,))), recovery=mutant()))


class Long(Mutant):
    def texts(self) -> TrainingTexts | None:
        return TrainingTexts(4, 10**6)


class Many(Mutant):
    def texts(self) -> TrainingTexts | None:
        return TrainingTexts(2**31 - 1, 8)


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        (Long, r"^`tokens` of the TrainingTexts of recovery `mutant` of .* must be at most the model's context"),
        (Many, r"^`windows` of the TrainingTexts of recovery `mutant` of .*, 2147483647, needs .* of memory"),
    ],
)
def test_texts_that_do_not_fit_are_named_by_what_gives_them(
    mutant: type[Mutant], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_cost, "read_host_memory", lambda: Memory(1 << 30, 1 << 30, 8 << 30))
    with pytest.raises(ConfigError, match=said):
        run(tmp_path / "out", replace(make_settings(Uniform(targets=(0.5,))), recovery=mutant()))
