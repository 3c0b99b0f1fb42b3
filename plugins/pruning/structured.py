"""Structured pruning: whole channels of an MLP and whole attention heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, Storage, working_dtype
from compressor.errors import ConfigError

from ..calibration_warnings import warn_of_tokens
from ..weight_checks import check_ranked
from .masks import PrunedWeight, lowest, prune

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("output", "down", "fc_out")
"""Kinds of the matrices whose input columns are channels of an MLP or attention heads."""


@dataclass
class Structured(Compressor):
    """Sets whole groups of input columns to zero: channels of an MLP, or attention heads that share a key and a value.

    For a weight w `[out, in]` with inputs x, a group G of columns has the importance

        Σ_{j in G} ‖w_j‖² E x_j²,

    which is the mean squared change of the outputs if the group is removed and its inputs do not correlate. The
    round(a · groups) least important groups become zero; w does not change elsewhere. A group is a column of down or
    fc_out. In an output projection it is the columns of the heads that share a key (`Component.input_group`).

    The rows that compute a removed group (of gate, up, query, key and value) are left as they are, because nothing
    reads their outputs any more; `export.cut=true` saves the model without these rows and columns. Other kinds of
    components are refused: a removed row or column would change what the rest of the network expects.

    Groups that were zero before come first; among equal importance it is the lowest index. A component that no token
    reached is pruned by ‖w_j‖². With `sequential`, the inputs come from a model whose earlier layers are compressed,
    when a plan is kept.
    """

    sequential: bool = True

    name: ClassVar[str] = "structured"
    stored_as: ClassVar[Storage] = Storage.dense
    needs: ClassVar[frozenset[str]] = frozenset({"second_moment", "tokens"})

    def offer(self, component: Component) -> Offer:
        if component.kind not in KINDS:
            raise ConfigError(
                f"`{self.name}` offers nothing for `{component.name}`: it removes input columns of the matrices that "
                "end an attention or an MLP; choose these by components.include, for example [down_proj,o_proj]"
            )
        return Offer()

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        (pruned,) = self.compress_each(weight, [amount], context)
        return pruned

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[PrunedWeight]:
        component = context.component
        importance = self.rank_groups(weight, context)
        for amount in amounts:
            self.offer(component).require(amount, self.name, component)
            groups = lowest(importance, round(amount * len(importance)))
            columns = groups.repeat_interleave(component.input_group)
            yield prune(weight, columns.expand(weight.shape).contiguous(), component)

    def rank_groups(self, weight: Tensor, context: Context) -> Tensor:
        """`[group]`: the importance of each group of columns, in float32 at least; raises ModelError for NaN."""
        import torch

        component, second_moment = context.component, context.calibration["second_moment"]
        tokens = int(context.calibration["tokens"])
        warn_of_tokens(self.name, component.name, tokens, "pruned by magnitude")
        smallest = torch.finfo(second_moment.dtype).tiny  # so that inputs of 0 still rank their columns by ‖w_j‖
        sizes = second_moment.clamp(min=smallest) if tokens else torch.ones_like(second_moment)
        norms = weight.to(working_dtype(weight.dtype)).square().sum(0)
        return check_ranked((norms * sizes).view(-1, component.input_group).sum(1), component)
