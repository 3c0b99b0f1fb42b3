"""The contract suite of recoveries."""

import copy
from pathlib import Path

import pytest

from compressor.contracts import Reconstruction, Recovery, Training
from compressor.contracts.declarations import check_recovery, read_training_texts
from compressor.contracts.training_requests import Asked, NotingTrainer
from compressor.models import load_model
from compressor.recovery.training_cost import count_cost
from compressor.settings import Device, ModelSettings
from compressor.testing.checkpoint import make_tiny_checkpoint
from compressor.testing.plugin_contract import PluginContract, randomness_untouched, refuse_torch


class RecoveryContract(PluginContract):
    """The promises of a `Recovery`. A run asks it twice, first to count the cost, so both answers must be the same."""

    contract = Recovery

    def list_asked(self, plugin: Recovery, number: int = 1) -> list[Asked]:
        """What it asks the trainer to do after a round."""
        trainer = NotingTrainer(number)
        plugin.recover(trainer)
        return trainer.asked

    def test_it_asks_for_something_after_each_round(self, plugin: Recovery) -> None:
        assert all(self.list_asked(plugin, number) for number in (1, 2, 5)), "it does nothing; leave it out"

    def test_it_asks_for_the_same_each_time(self, plugin: Recovery) -> None:
        before = copy.deepcopy(vars(plugin))
        with randomness_untouched():
            first = self.list_asked(plugin)
        assert self.list_asked(plugin) == first, "another call gave another training; all randomness is the trainer's"
        assert vars(plugin) == before, "recover() changed the options"

    def test_what_it_asks_for_is_possible(self, plugin: Recovery, tmp_path: Path) -> None:
        plugin.check_options()
        check_recovery(plugin)
        model = load_model(ModelSettings(str(make_tiny_checkpoint(tmp_path / "model")), device=Device.cpu))
        cost = count_cost(plugin, model)
        assert cost.memory >= 0 and cost.passes >= 0

    def test_training_has_texts(self, plugin: Recovery) -> None:
        trains = any(isinstance(asked, Training | Reconstruction) for asked in self.list_asked(plugin))
        assert read_training_texts(plugin) or not trains, "texts() is None, and training needs texts"

    def test_needs_no_torch(self, plugin: Recovery, monkeypatch: pytest.MonkeyPatch) -> None:
        """It says what to do where torch cannot be imported."""
        refuse_torch(monkeypatch)
        self.list_asked(plugin)
