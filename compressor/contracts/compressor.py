"""The contract of compressors: what one does to a weight matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts.types import Component, Offer
from compressor.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.contracts.quantized import QuantizedMatrix

InputTransform = Callable[["Tensor"], "Tensor"]
"""What becomes of inputs `[..., in]` before a matrix product: as many, of the same dtype, each token by itself."""


@dataclass(frozen=True)
class Context:
    """What a compressor may know besides the weight: its component, a seed, and the calibration data that it `needs`.

    `calibration` is of the component's inputs x_t `[in]`, one for each token t of the search prefixes and of what the
    base said after them, in the model as it stood when they were gathered. They are on the weight's device, and are not
    to be changed, for components share them:

    - `hessian` `[in, in]` float32: Σ_t x_t x_tᵀ / n, the matrix of second moments;
    - `second_moment` `[in]` float32: Σ_t x_t² / n, the diagonal of `hessian`, for a fraction of its time and memory;
    - `absmax` `[in]` float32: max_t |x_t|;
    - `tokens` `[]` int64: n, how many tokens came to the component. An expert that none reached has 0, and zeros.
    """

    component: Component
    seed: int = 0
    calibration: Mapping[str, Tensor] = field(default_factory=dict)


class CompressedWeight(ABC):
    """A weight after compression, in the form in which it is stored."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The value `[out, in]` that the matrix product uses, in the dtype of the weight that was given."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits that the packed weight takes: its integers, scales, zero points and whatever else `dense` needs."""

    @property
    def quantized(self) -> QuantizedMatrix | None:
        """The weight as integers with scales, if it is nothing else: an export then packs it. None: it stays dense."""
        return None

    @property
    def input_transform(self) -> InputTransform | None:
        """What is done to the inputs before the matrix product, simulated in their own dtype; None leaves them.

        A pure function of inputs `[..., in]` that treats each token by itself. It may be other than None only if
        `Compressor.transforms_inputs` is True.
        """
        return None


class Compressor(ABC):
    """Takes bits away from one weight matrix. A pure function of weight, amount and context."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Names of calibration data, of those that `Context` lists."""
    sequential: bool = False
    """Is calibration data gathered anew for each layer, when the layers below are compressed? Only when a plan is kept:
    trials are compressed with calibration data of the model as it stands."""

    @property
    def transforms_inputs(self) -> bool:
        """May its weights have an `input_transform`, with these options? A run first checks that it can apply them."""
        return False

    @abstractmethod
    def offer(self, component: Component) -> Offer:
        """The amounts that can be asked for; raises ConfigError where an option does not fit."""

    @abstractmethod
    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        """Compress `weight` `[out, in]`, which must not be changed; `amount` is one that `offer` contains."""

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[CompressedWeight]:
        """`compress` at each of the amounts, one after the other; override it where they can share work, say a sort."""
        return (self.compress(weight, amount, context) for amount in amounts)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        """As `compress`, with an amount of its own for every output row; only where the offer is `by_row`."""
        raise PlanError(f"`{self.name}` takes one amount per matrix; give `{context.component.name}` no rows")

    def importance(self, weight: Tensor, context: Context) -> Tensor | None:
        """`[out, in]`, smallest goes first, comparable between components; None if not a pruner of single weights."""
        return None
