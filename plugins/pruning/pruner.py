"""What compressors that prune single weights share: their options, and which amounts they offer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer, Storage

from .masks import PrunedWeight
from .selection import Scope, Selection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Pruner(Compressor):
    """Sets weights to zero, of which `scope` and `pattern` say where how many; see `Selection`."""

    scope: Scope = Scope.matrix
    pattern: str = ""

    stored_as: ClassVar[Storage] = Storage.dense

    @property
    def selection(self) -> Selection:
        return Selection(self.name, self.scope, self.pattern)

    def check_options(self) -> None:
        self.selection.check_options()

    def list_unused(self) -> Mapping[str, str]:
        return self.selection.list_unused()

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return self.selection.offer()


@dataclass
class RankedPruner(Pruner):
    """Sets the weights of smallest importance to zero, and leaves the others as they are."""

    @abstractmethod
    def rank(self, weight: Tensor, context: Context) -> Tensor:
        """The importance `[out, in]` of each weight, in float32 at least; raises ModelError for NaN."""

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        return self.selection.prune(weight, self.rank(weight, context), amount, context.component)

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[CompressedWeight]:
        yield from self.selection.prune_each(weight, self.rank(weight, context), amounts, context.component)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> PrunedWeight:
        return self.selection.prune_rows(weight, self.rank(weight, context), amounts, context.component)

    def importance(self, weight: Tensor, context: Context) -> Tensor | None:
        """That of `rank`; None with a `pattern`, which does not prune weights one by one."""
        return None if self.pattern else self.rank(weight, context)
