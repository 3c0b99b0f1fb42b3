"""Trained scales: their gradients against autograd, their range, and the matrix that they end in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressor.contracts import Context, QuantizedMatrix
from compressor.contracts.quantized import join_groups, split_groups
from compressor.recovery.masks import Masks
from compressor.recovery.optimizer import Optimizer
from compressor.recovery.scales import TrainedScales
from compressor.settings import DType
from compressor_plugins.quantization.int8 import Granularity, Int8
from tests.support.trainers import load_family, quantize

NAME = "model.layers.0.mlp.up_proj"
FUSED = "model.layers.0.self_attn.qkv_proj:k"


def differentiate(matrix: QuantizedMatrix, gradient: torch.Tensor) -> torch.Tensor:
    """∂L/∂a in float64 by autograd, where ∂L/∂ŵ is `gradient` and s = s₀ · exp(a)."""
    logarithms = torch.zeros_like(matrix.scales, dtype=torch.float64, requires_grad=True)
    scales = matrix.scales.double() * logarithms.exp()
    groups = split_groups(matrix.integers, len(scales), matrix.group).double()
    zeros = 0 if matrix.zeros is None else matrix.zeros.double()[..., None]
    weight = join_groups((groups - zeros) * scales[..., None], matrix.integers.shape)
    (weight * gradient.double()).sum().backward()
    assert logarithms.grad is not None
    return logarithms.grad


@pytest.mark.parametrize(
    ("family", "name", "scheme"),
    [
        ("llama", NAME, "groups"), ("llama", NAME, "whole matrix"), ("llama", NAME, "zero points"),
        ("phi3", FUSED, "groups"),
    ],
)  # fmt: skip
def test_gradients_are_those_of_autograd(family: str, name: str, scheme: str, tmp_path: Path) -> None:
    model = load_family(family, tmp_path)
    if scheme == "whole matrix":
        int8, component = Int8(granularity=Granularity.tensor), model.components[name]
        made = int8.compress(model.read(name), int8.offer(component).levels[0], Context(component))
        assert made.quantized is not None
        matrix = made.quantized
    else:
        matrix = quantize(model, [name], group=5)[name]  # the last group of a row is shorter
        if scheme == "zero points":
            matrix = replace(
                matrix, zeros=torch.arange(matrix.scales.numel()).view_as(matrix.scales).to(torch.int8) % 5
            )
    model.write(name, matrix.dense())
    scales, view = TrainedScales(model.weight_views[name], matrix), model.weight_views[name]
    assert scales.compute_gradient() is None
    view.parameter.grad = torch.randn(view.parameter.shape, generator=torch.Generator().manual_seed(0))
    gradient = view.part(view.parameter.grad).reshape(view.component.shape)
    found = scales.compute_gradient()
    assert found is not None
    torch.testing.assert_close(found.double(), differentiate(matrix, gradient), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_integers_stay_and_scales_keep_their_sign(dtype: DType, tmp_path: Path) -> None:
    """Whatever the steps, and where a whole group is zero."""
    model = load_family("llama", tmp_path, dtype)
    weight = model.read(NAME)
    weight[0] = 0
    model.write(NAME, weight)
    matrix = quantize(model, [NAME])[NAME]
    scales, view = TrainedScales(model.weight_views[NAME], matrix), model.weight_views[NAME]
    optimizer = Optimizer([], Masks({}, {}), 0.5, 0.1, scales=[scales])
    for step in range(10):
        view.parameter.grad = torch.randn(view.parameter.shape, generator=torch.Generator().manual_seed(step)).to(
            view.parameter.dtype
        )
        optimizer.update(1.0, holds_masks=True)
        assert view.parameter.grad is None
        assert torch.equal(view.read(), scales.find_matrix().dense())
    found = scales.find_matrix()
    assert torch.equal(found.integers, matrix.integers) and found.scales.dtype == matrix.scales.dtype
    assert torch.equal(found.scales.sign(), matrix.scales.sign())
    assert not torch.equal(found.scales, matrix.scales)
    assert not view.read()[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scales_that_are_not_trained_stay_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = load_family("llama", tmp_path)
    matrix = quantize(model, [NAME])[NAME]
    matrix = replace(matrix, scales=(matrix.scales.double() / 3).to(dtype))
    found = TrainedScales(model.weight_views[NAME], matrix).find_matrix()
    assert found.scales.dtype == dtype and torch.equal(found.scales, matrix.scales)


def test_a_step_changes_scales_of_any_size_by_the_same_share(tmp_path: Path) -> None:
    """The first step of AdamW is the learning rate in the logarithm; weight decay does not act on it."""
    model = load_family("llama", tmp_path)
    model.write(NAME, model.read(NAME) * torch.logspace(-3, 3, model.components[NAME].shape[0])[:, None])
    matrix = quantize(model, [NAME])[NAME]
    scales, view = TrainedScales(model.weight_views[NAME], matrix), model.weight_views[NAME]
    optimizer = Optimizer([], Masks({}, {}), 0.01, weight_decay=1.0, scales=[scales])
    view.parameter.grad = view.parameter.detach() * 1e6  # so every scale has a positive gradient
    optimizer.update(1.0, holds_masks=True)
    shares = scales.find_matrix().scales / matrix.scales
    torch.testing.assert_close(shares, torch.full_like(shares, 0.99005), rtol=1e-4, atol=0)
