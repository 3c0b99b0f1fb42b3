"""The built-in recoveries keep the contract, and say what they are asked for."""

import pytest

from compressor.contracts import Loss, Reconstruction, Training
from compressor.testing import RecoveryContract
from compressor_plugins.recovery.finetune import Finetune
from compressor_plugins.recovery.least_squares import LeastSquares
from compressor_plugins.recovery.reconstruct import Reconstruct


class TestFinetune(RecoveryContract):
    instance = Finetune()

    def test_both_kinds_of_steps_share_one_schedule_of_the_learning_rate(self) -> None:
        assert self.list_asked(Finetune(steps=450, released=50, learning_rate=0.5)) == [
            Training(steps=500, released=50, learning_rate=0.5)
        ]

    def test_options_of_distillation_have_no_effect_without_it(self) -> None:
        without = Finetune(loss=Loss.language_modelling, dataset="some/set")
        assert {*without.list_unused()} == {"temperature", "mix"}
        assert not Finetune(dataset="some/set").list_unused()

    def test_parts_of_a_data_set_have_no_effect_without_one(self) -> None:
        for recovery in (Finetune(), Reconstruct()):
            assert {*recovery.list_unused()} == {"subset", "split"}


class TestReconstruct(RecoveryContract):
    instance = Reconstruct()

    def test_its_options_are_those_of_the_trainer(self) -> None:
        asked = self.list_asked(Reconstruct(7, 0.5, 0.25, 0.125, 3))
        assert asked == [Reconstruction(steps=7, batch=3, learning_rate=0.5, warmup=0.25, weight_decay=0.125)]


class TestLeastSquares(RecoveryContract):
    instance = LeastSquares()

    def test_it_takes_no_texts(self) -> None:
        assert LeastSquares().texts() is None
        assert self.list_asked(LeastSquares(0.5)) == [pytest.approx(0.5)]
