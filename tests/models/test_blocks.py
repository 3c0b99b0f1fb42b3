"""Which input columns of an output projection belong together: found by changing one head of the values."""

import pytest
import torch
from torch import Tensor, nn

from compressor.models.blocks import find_blocks
from compressor.models.components import find_components
from tests.support.families import FAMILIES, ODDITIES, each, make_network


@pytest.mark.parametrize("family", each(name for name in {**FAMILIES, **ODDITIES} if name != "mamba"))
def test_the_columns_of_a_group_are_those_that_one_head_of_the_values_reaches(family: str) -> None:
    network = make_network(family)
    views = find_components(network, 32)
    tokens = torch.arange(8)[None] + 3
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(0, -2).clone())

    block = next(block for block in find_blocks(views.values()) if block.is_attention)
    output, value = block.views["output"], block.views["value"]
    group = output.component.input_group
    groups = output.component.shape[1] // group
    rows = value.component.shape[0] // groups
    handle = output.owner.register_forward_pre_hook(note)
    weight = value.read()
    for index in range(groups):
        changed = weight.clone()
        changed[index * rows : (index + 1) * rows] += 1
        for one in (weight, changed):
            value.write(one)
            network(input_ids=tokens, use_cache=False)
        before, after = seen[-2:]
        reached = (before != after).any(0).nonzero().flatten().tolist()
        assert reached == list(range(index * group, (index + 1) * group)), (index, reached)
    handle.remove()
    assert groups > 1 or rows == value.component.shape[0]


@pytest.mark.parametrize("family", each(FAMILIES))
def test_every_matrix_is_in_one_block_and_other_matrices_have_single_columns(family: str) -> None:
    views = find_components(make_network(family), 32)
    blocks = find_blocks(views.values())
    names = [view.component.name for block in blocks for view in block.views.values()]
    assert sorted(names) == sorted(views)
    kinds = [{*block.views} for block in blocks if block.last is not None]
    wanted = ({"gate", "up", "down"}, {"fc_in", "fc_out"}, {"query", "key", "value", "output"})
    assert kinds and all(found in wanted for found in kinds)
    assert {view.component.kind for view in views.values() if view.component.input_group > 1} == {"output"}
