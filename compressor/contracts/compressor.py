"""The contract of compressors: weight matrix -> compressed weight."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts.guard import Guarded
from compressor.contracts.quantized import CompressedWeight
from compressor.contracts.types import Component, Offer
from compressor.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Information for a compressor besides the weight: the component, a seed, and the calibration data in its `needs`.

    `calibration` is computed in the model at the time of calibration, for each token t of the search prefixes and of
    the base's continuations, from the component's inputs x_t `[in]` or from gradients. The tensors are on the weight's
    device. They must not be changed, because components share them:

    - `hessian` `[in, in]` float32: Σ_t w_t x_t x_tᵀ / Σ_t w_t, the matrix of second moments. Weights w_t are 1 unless
      the setting `data.calibration` chooses others;
    - `second_moment` `[in]` float32: its diagonal Σ_t w_t x_t² / Σ_t w_t, at a fraction of its time and memory;
    - `absmax` `[in]` float32: max_t |x_t|;
    - `tokens` `[]` int64: n, the number of tokens that reached the component. An expert with 0 has zeros elsewhere;
    - `fisher_diagonal` `[out, in]` float32: E (∂ ln p(y) / ∂w)² of each weight w, over positions of the continuations
      and labels y drawn from the model. It takes a backward pass, which costs about four forward passes.
    """

    component: Component
    seed: int = 0
    calibration: Mapping[str, Tensor] = field(default_factory=dict)


class Storage(enum.Enum):
    """How compressed weights are stored, which decides what they can save."""

    dense = "dense"
    """Like the weights before: nothing gets smaller."""
    integers = "integers"
    """Integers, scales and integer zero points (`QuantizedMatrix`): an export packs them, so its files get smaller."""
    other = "other"
    """Fewer bits, in a form that no export packs: its files keep their size."""


class Compressor(Guarded, ABC):
    """A compression method for one weight matrix: a pure function of weight, amount and context."""

    _kind = "compressor"
    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Names of the calibration data that it uses, from the list in `Context`."""
    sequential: bool = False
    """Whether a kept plan is applied layer by layer, with new calibration data when all earlier layers are compressed.
    Trials always use calibration data of the current model."""

    stored_as: ClassVar[Storage | None] = None
    """If it is given, a limit of the size that no weight can help to keep is refused before the model is loaded."""

    @property
    def transforms_inputs(self) -> bool:
        """Whether weights with these options may have an `input_transform`. A run checks first that it can apply it."""
        return False

    def check_options(self) -> None:
        """Raise ConfigError for options that suit no component. It is called before the model is loaded."""

    def list_unused(self) -> Mapping[str, str]:
        """Option -> the option that leaves it without effect, such as `{"scope": "pattern"}`."""
        return {}

    @abstractmethod
    def offer(self, component: Component) -> Offer:
        """The amounts that are offered for a component; raises ConfigError for an invalid option."""

    @abstractmethod
    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        """Compress `weight` `[out, in]` without changing it; `amount` is in the `offer`."""

    def compress_each(self, weight: Tensor, amounts: Sequence[float], context: Context) -> Iterator[CompressedWeight]:
        """`compress` at each of the amounts, in order. Override it if amounts can share work, for example a sort."""
        return (self.compress(weight, amount, context) for amount in amounts)

    def compress_rows(self, weight: Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        """Like `compress`, with one amount for each output row. Needed only if the offer is `by_row`."""
        raise PlanError(f"`{self.name}` takes one amount per matrix; give `{context.component.name}` no rows")

    def importance(self, weight: Tensor, context: Context) -> Tensor | None:
        """`[out, in]`, comparable between components; the smallest is pruned first; None if weights are not ranked."""
        return None
