"""Damaged model folders: each loads and can be run, or is one line; the folder is left as it was.

Few examples run with the other tests; `make nightly` tries thousands.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings

from compressor import export
from compressor.models import load_model
from compressor.settings import ModelSettings
from tests.support.damage import damage_model, damaged_models, try_out
from tests.support.families import USUAL, save_checkpoint


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def use(folder: Path) -> None:
    """What a run does with a model folder before its search."""
    model = load_model(ModelSettings(path=str(folder)))
    export.check_savable(model)
    if model.tokenizer is not None:
        model.tokenizer("a text")


@pytest.mark.parametrize("examples", [8, pytest.param(400, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("family", USUAL)
def test_damaged_model_folders_are_one_line(family: str, examples: int, tmp_path: Path) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    save_checkpoint(family, whole, with_tokenizer=True, shard_size="60KB")

    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 100)
    @given(damage=damaged_models(whole))
    def check(damage: tuple[str, bytes | None]) -> None:
        damage_model(whole, changed, damage)
        before = read_files(changed)
        try_out(lambda: use(changed))
        assert read_files(changed) == before

    check()
