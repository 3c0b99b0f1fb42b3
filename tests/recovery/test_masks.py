"""Masks of pruned weights: one bit for each weight, and exact zeros."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.models import Model
from compressor.recovery.masks import Masks, PackedMask
from tests.support.trainers import load_family

NAME = "model.layers.0.mlp.up_proj"


@given(st.lists(st.integers(0, 9), min_size=0, max_size=3), st.integers(0, 1000))
def test_a_packed_mask_is_the_mask_in_one_bit_for_each_weight(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = PackedMask.of(mask)
    assert torch.equal(packed.unpack(), mask)
    assert packed.packed.nbytes == -(-mask.numel() // 8)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_pruned_weights_of_every_kind_of_parameter_are_zero_again(family: str, tmp_path: Path) -> None:
    """Transposed, fused and stacked matrices are views into parameters."""
    model = load_family(family, tmp_path)
    names = list(model.components)[:8]
    expected = {}
    for name in names:
        weight = model.read(name)
        weight[:, ::3] = 0
        model.write(name, weight)
        expected[name] = weight
    masks = Masks.of(model, names)
    gradients = {view.parameter: torch.ones_like(view.parameter) for view in masks.views.values()}
    masks.zero_in(gradients)
    for name in names:
        model.write(name, expected[name] + 1)
    masks.zero_weights()
    for name in names:
        view = model.weight_views[name]
        gone = expected[name] == 0
        assert torch.equal(model.read(name), torch.where(gone, 0, expected[name] + 1))
        assert torch.equal(view.part(gradients[view.parameter]).reshape(gone.shape) == 0, gone)


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    model: Model = load_family("llama", tmp_path)
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    masks = Masks.of(model, [NAME])
    masks.zero_weights()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.network.named_parameters())
