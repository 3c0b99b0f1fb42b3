"""The optimizer against torch's own, and zeros that stay zeros."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.recovery.masks import Masks
from compressor.recovery.optimizer import Optimizer, compute_rate
from compressor.settings import DType
from tests.support.trainers import load_family, prune

NAME = "model.layers.0.mlp.up_proj"
NOTHING = Masks({}, {})


def test_without_masks_it_is_adamw_with_clipped_gradients() -> None:
    ours, theirs = (nn.Linear(4, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer([*ours.parameters()], NOTHING, 1e-2, 0.1, clip=0.5)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-2)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for step in range(5):
        with optimizer.training():
            ours(x).square().sum().backward()
            optimizer.update(1 - step / 10, holds_masks=True)
        theirs(x).square().sum().backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = 1e-2 * (1 - step / 10)
        adam.step()
        adam.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-6, atol=1e-7)
        assert not mine.requires_grad and mine.grad is None


@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_pruned_weights_are_zero_after_every_step(dtype: DType, tmp_path: Path) -> None:
    """With weight decay and momentum, also right after steps in which they were free."""
    model = load_family("llama", tmp_path, dtype)
    gone = prune(model, [NAME])[NAME]
    parameter = model.weight_views[NAME].parameter
    optimizer = Optimizer([parameter], Masks.of(model, [NAME]), 0.1, 0.5)
    for step in range(8):
        free = step in (3, 4)
        parameter.grad = torch.full_like(parameter, 0.5 + step)
        optimizer.update(1.0, holds_masks=not free)
        weight = model.read(NAME)
        assert bool((weight[gone] == 0).all()) != free
        assert not torch.signbit(weight[gone]).any() or free
        assert bool(weight[~gone].any())


def test_small_updates_of_16_bit_weights_add_up(tmp_path: Path) -> None:
    """A step of 1e-4 is below the rounding of a weight near 1 in bfloat16; a hundred are not."""
    model = load_family("llama", tmp_path, DType.bfloat16)
    parameter = model.weight_views[NAME].parameter
    with torch.no_grad():
        parameter.fill_(1.0)
    optimizer = Optimizer([parameter], NOTHING, 1e-4, 0.0)
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.update(1.0, holds_masks=True)
    assert float(parameter.detach().float().mean()) == pytest.approx(0.99, abs=0.004)


def test_it_goes_on_from_its_state(tmp_path: Path) -> None:
    first, second = (load_family("llama", tmp_path, DType.bfloat16) for _ in range(2))
    both = [Optimizer([model.weight_views[NAME].parameter], NOTHING, 1e-3, 0.1) for model in (first, second)]

    def update(optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            parameter = optimizer.parameters[0]
            parameter.grad = torch.full_like(parameter, math.sin(step))
            optimizer.update(compute_rate(step, 20, 0.1), holds_masks=True)

    update(both[0], range(7))
    with torch.no_grad():
        both[1].parameters[0].copy_(both[0].parameters[0])
    both[1].restore({name: tensor.clone() for name, tensor in both[0].list_state().items()})
    for optimizer in both:
        update(optimizer, range(7, 20))
    assert torch.equal(both[0].parameters[0], both[1].parameters[0])
    assert torch.equal(both[0].updated[0], both[1].updated[0])


def test_the_rate_rises_and_then_falls_to_zero() -> None:
    rates = [compute_rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5) and 0 < rates[99] < 0.001
    assert compute_rate(0, 1, 0.0) == 1
