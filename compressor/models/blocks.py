"""Groups of components whose rows and columns belong together: an MLP, one expert of a mixture, or an attention."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from compressor.models.architectures import Heads
from compressor.models.weight_views import WeightView

OUTER = ("output", "down", "fc_out")
"""Kinds of the last matrix of a block: its input columns belong to channels of an MLP, or to heads."""


@dataclass(frozen=True)
class Block:
    """The matrices of one MLP, expert or attention in the module at `path`, by their kind."""

    path: str
    views: Mapping[str, WeightView]

    @property
    def last(self) -> WeightView | None:
        """The matrix whose inputs are the channels or the heads; None if the block has none."""
        return next((self.views[kind] for kind in OUTER if kind in self.views), None)

    def pick(self, kinds: Iterable[str]) -> list[WeightView]:
        """The matrices of these kinds that there are."""
        return [self.views[kind] for kind in kinds if kind in self.views]

    @property
    def is_attention(self) -> bool:
        return {"value", "output"} <= self.views.keys()


def find_blocks(weight_views: Collection[WeightView]) -> list[Block]:
    """All blocks of these components, in their order. Of two matrices of one kind in a block, the last counts."""
    found: dict[tuple[str, str], dict[str, WeightView]] = defaultdict(dict)
    for weight_view in weight_views:
        matrix, _, part = weight_view.component.name.partition(":")
        expert = part.partition(".")[0]
        path = matrix.rpartition(".")[0]
        found[path, expert if expert.isdigit() else ""][weight_view.component.kind] = weight_view
    return [Block(path, views) for (path, _), views in found.items()]


def group_inputs(network: PreTrainedModel, weight_views: Mapping[str, WeightView]) -> dict[str, WeightView]:
    """The same components, with the `input_group` of output projections: the columns of heads that share a key."""
    config = network.config.get_text_config()
    grouped = dict(weight_views)
    for block in find_blocks(weight_views.values()):
        if block.is_attention and (columns := count_columns(network, block, config)) > 1:
            output = block.views["output"]
            component = replace(output.component, input_group=columns)
            grouped[component.name] = replace(output, component=component)
    return grouped


def count_columns(network: PreTrainedModel, block: Block, config: Any) -> int:  # noqa: ANN401 - transformers' configs are untyped
    """Input columns of the output projection for each head of the values; 1 if the shapes do not fit one another."""
    heads = Heads.of_module(network.get_submodule(block.path), config)
    rows, columns = block.views["value"].component.shape[0], block.views["output"].component.shape[1]
    if heads is None or rows % heads.width or columns % (groups := rows // heads.width):
        return 1
    return columns // groups
