"""The choice of the weights to prune by their importance: in the matrix, in each row, or N of M neighbours stay."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.contracts import Component, Offer
from compressor.errors import ConfigError

from .masks import PrunedWeight, lowest, lowest_of_matrix_each, lowest_of_rows, prune

if TYPE_CHECKING:
    from torch import Tensor


class Scope(enum.Enum):
    """The set in which weights are ranked: the whole matrix, or each output row (then all rows lose the same share)."""

    matrix = "matrix"
    row = "row"


@dataclass(frozen=True)
class Selection:
    """Chooses the weights of smallest importance `[out, in]`; NaN has no rank. `pruner` is named in errors.

    The set of n weights is the matrix or a row, by `scope`; the round(a · n) least important are pruned. With amounts
    per row, it is round(a_r · in) of row r. A `pattern` N:M keeps the N most important of every M neighbours along
    `in`, and ⌈N · n / M⌉ of a shorter last group of n. `scope` then has no effect, and 1 − N/M is the only amount.
    Among equal importance the lowest index is pruned first, so the mask of a larger amount includes a smaller one's.
    """

    pruner: str
    scope: Scope
    pattern: str

    def check_options(self) -> None:
        """Raises ConfigError for a `pattern` that is not N:M."""
        if self.pattern:
            self.parse_pattern()

    def list_unused(self) -> Mapping[str, str]:
        """Option -> the option that leaves it without effect."""
        return {"scope": "pattern"} if self.pattern else {}

    def offer(self) -> Offer:
        if not self.pattern:
            return Offer(by_row=True)
        keep, of = self.parse_pattern()
        return Offer(levels=(1 - keep / of,))

    def prune(self, weight: Tensor, importance: Tensor, amount: float, component: Component) -> PrunedWeight:
        """`weight` `[out, in]` with zeros by one amount; raises PlanError if it is not offered."""
        self.offer().require(amount, self.pruner, component)
        return prune(weight, self.find_mask(importance, amount), component)

    def prune_each(
        self, weight: Tensor, importance: Tensor, amounts: Sequence[float], component: Component
    ) -> Iterator[PrunedWeight]:
        """`prune` at each of the amounts. If the matrix is ranked as a whole, one sort serves all of them."""
        if self.pattern or self.scope is Scope.row:
            for amount in amounts:
                yield self.prune(weight, importance, amount, component)
            return
        for mask in lowest_of_matrix_each(importance, amounts):
            yield prune(weight, mask, component)

    def prune_rows(
        self, weight: Tensor, importance: Tensor, amounts: Sequence[float], component: Component
    ) -> PrunedWeight:
        """`weight` `[out, in]` with zeros by one amount for each row; raises PlanError if that is not offered."""
        self.offer().require_rows(amounts, self.pruner, component)
        return prune(weight, self.find_row_mask(importance, amounts), component)

    def find_mask(self, importance: Tensor, amount: float, start: int = 0) -> Tensor:
        """True for the weights to prune, among columns `[out, column]` of a matrix from index `start` on.

        Counts are differences of rounded counts up to a column. So consecutive blocks of columns together lose as many
        weights as the matrix, or the row, is asked for.
        """
        if self.pattern:
            return self.mask_pattern(importance)
        rows, columns = importance.shape
        if self.scope is Scope.row:
            return lowest(importance, count_between(amount, start, start + columns))
        count = count_between(amount, rows * start, rows * (start + columns))
        return lowest(importance.reshape(1, -1), count).view(importance.shape)

    def find_row_mask(self, importance: Tensor, amounts: Sequence[float], start: int = 0) -> Tensor:
        """`find_mask` with one amount for each row."""
        end = start + importance.shape[1]
        return lowest_of_rows(importance, [count_between(amount, start, end) for amount in amounts])

    def mask_pattern(self, importance: Tensor) -> Tensor:
        """True for the weights to prune: all except the N largest of every M neighbours in a row."""
        import torch

        keep, of = self.parse_pattern()
        out, width = importance.shape
        whole = width // of * of
        groups, tail = importance[:, :whole].reshape(out, -1, of), importance[:, whole:]
        rest = width - whole
        masks = [lowest(groups, of - keep).view(out, whole), lowest(tail, rest - -(-keep * rest // of))]
        return torch.cat(masks, dim=1)

    def parse_pattern(self) -> tuple[int, int]:
        """`pattern` as (N, M); raises ConfigError."""
        match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", self.pattern)
        keep, of = map(int, match.groups()) if match else (0, 0)
        if not 1 <= keep < of:
            raise ConfigError(
                f"`compressor.{self.pruner}.pattern` must be N:M with 1 <= N < M, got {self.pattern!r}; "
                "give for example '2:4' (YAML needs the quotes)"
            )
        return keep, of


def count_between(amount: float, start: int, end: int) -> int:
    """How many of the weights `start` to `end` of a line are pruned: round(a · end) − round(a · start)."""
    return round(amount * end) - round(amount * start)
