"""What quantizers offer, how they are configured, and each mistake in one line."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from compressor.contracts import Component, Compressor, Context
from compressor.errors import ConfigError, ModelError, PlanError
from compressor_plugins.quantization.hqq import Hqq
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Granularity, Int8
from compressor_plugins.quantization.nf4 import Nf4
from compressor_plugins.quantization.rtn import Rtn

NAME = "model.layers.0.mlp.up_proj"


def component_of(weight: Tensor, stored_bits: int | None = None) -> Component:
    out, width = weight.shape
    return Component(NAME, "up", 0, (out, width), stored_bits or weight.element_size() * 8)


def test_offers_follow_the_stored_bits() -> None:
    weight = torch.ones(4, 4)
    assert Int8().offer(component_of(weight, 16)).levels == (0.5,)
    assert Int8().offer(component_of(weight, 32)).levels == (0.75,)
    assert Int4().offer(component_of(weight, 16)).levels == (0.75,)
    assert Nf4().offer(component_of(weight, 32)).levels == (0.875,)
    assert Hqq([2, 4]).offer(component_of(weight, 16)).levels == (0.875, 0.75)
    assert Rtn().offer(component_of(weight, 16)).levels == (0.875, 0.8125, 0.75, 0.625, 0.5)
    assert Rtn().offer(component_of(weight, 8)).levels == (0.75, 0.625, 0.5, 0.25)
    assert Rtn(list(range(2, 9))).offer(component_of(weight, 16)).levels == tuple(1 - b / 16 for b in range(2, 9))


@pytest.mark.parametrize(
    ("compressor", "line"),
    [
        (Rtn(group=0), "`compressor.rtn.group` must be at least 1, got 0; give for example 32"),
        (Int4(group=-32), "`compressor.int4.group` must be at least 1, got -32; give for example 32"),
        (Int8(group=-1), "`compressor.int8.group` must be at least 0, got -1; give for example 32"),
        (Int8(Granularity.group), "`compressor.int8.group` must be at least 1, got 0; give for example 32"),
        (
            Int8(Granularity.tensor, 64),
            "`compressor.int8.group` must be 0 with granularity `tensor`, got 64; drop one of the two",
        ),
    ],
)
def test_bad_option_is_one_line(compressor: Compressor, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        compressor.offer(component_of(torch.ones(2, 2)))
    assert str(error.value) == line


@pytest.mark.parametrize("bits", [[], [1, 4], [4, 9], [4, 4]])
def test_bad_widths_are_one_line(bits: list[int]) -> None:
    with pytest.raises(ConfigError) as error:
        Rtn(bits).offer(component_of(torch.ones(2, 2)))
    assert str(error.value) == (
        f"`compressor.rtn.bits` must be different widths from 2 to 8, got {bits}; give for example [3,4,8]"
    )


@pytest.mark.parametrize("compressor", [Int8(), Rtn([8])])
def test_nothing_left_to_take_is_one_line(compressor: Compressor) -> None:
    with pytest.raises(ConfigError) as error:
        compressor.offer(component_of(torch.ones(2, 2), stored_bits=8))
    assert str(error.value) == (
        f"`{compressor.name}` offers nothing for `{NAME}`: 8 bits must be fewer than the 8 stored; "
        "choose fewer bits, or exclude it by components.exclude"
    )


@pytest.mark.parametrize(
    ("compressor", "amount", "offered"),
    [(Int8(), 0.0, "0.5"), (Int8(), 0.75, "0.5"), (Int4(), 0.7, "0.75"), (Rtn([3, 8]), 0.75, "0.5, 0.8125")],
)
def test_amount_that_is_not_offered(compressor: Compressor, amount: float, offered: str) -> None:
    weight = torch.ones(2, 2).bfloat16()
    with pytest.raises(PlanError) as error:
        compressor.compress(weight, amount, Context(component_of(weight)))
    assert str(error.value) == (
        f"`{compressor.name}` offers the amounts {offered} for `{NAME}`, got {amount:g}; ask for one of these"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "compressor",
    [
        *(Int8(), Int8(Granularity.tensor), Rtn([4]), Nf4(), Nf4(double_quant=False), Hqq()),
        *(Int4(symmetric=symmetric, clip=clip) for symmetric in (True, False) for clip in (True, False)),
    ],
)
def test_weights_that_are_not_finite_are_named(compressor: Compressor, bad: float) -> None:
    weight = torch.ones(3, 40)
    weight[1, 35] = bad
    with pytest.raises(ModelError, match=rf"^weight of `{NAME}` contains NaN or infinity; [^\n]+$"):
        compressor.compress(weight, compressor.offer(component_of(weight)).largest, Context(component_of(weight)))


@pytest.mark.parametrize(
    ("compressor", "text"),
    [
        (Int8(Granularity.tensor), "{granularity: tensor}"),
        (Int8(group=64), "{group: 64}"),
        (Int4(64, symmetric=False, clip=True), "{group: 64, symmetric: false, clip: true}"),
        (Nf4(128, double_quant=False), "{group: 128, double_quant: false}"),
        (Hqq([3], 32, 1.0, 2.0, 1.5, 9), "{bits: [3], group: 32, lp_norm: 1, beta: 2, kappa: 1.5, iterations: 9}"),
        (Rtn([2, 5], 16), "{bits: [2, 5], group: 16}"),
    ],
)
def test_options_are_set_from_a_config(compressor: Compressor, text: str) -> None:
    merged = OmegaConf.merge(OmegaConf.structured(type(compressor)), OmegaConf.create(text))
    assert OmegaConf.to_object(merged) == compressor
