"""AbsMax int8."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, Compressor, Context, Offer, QuantizedMatrix, Storage, TokenRounding
from compressor.errors import ConfigError

from ..options import check_option
from .options import choose_bits, offer_bits
from .rounding import RoundToNearest

if TYPE_CHECKING:
    from torch import Tensor


class Granularity(enum.Enum):
    """Which weights share a scale."""

    tensor = "tensor"
    row = "row"
    group = "group"


class Activations(enum.Enum):
    """Whether inputs are rounded too: `none`, or with one scale for each `token`."""

    none = "none"
    token = "token"


INPUTS = TokenRounding()


@dataclass
class Int8(Compressor):
    """AbsMax: 8-bit integers with a scale set by the largest |w|; outliers are not treated separately.

    s = max|w| / 127, q = clamp(round(w / s), ±127), ŵ = s · q; ties round to even. Weights `[out, in]` share s in the
    matrix (`tensor`), in an output row (`row`), or in `group` neighbours of a row (`group`; the last may be shorter).
    With a positive `group`, `row` means the same as `group`. The amount is 1 − 8 / stored bits. Scales are stored in
    addition, and counted.

    With `activations` `token`, inputs are rounded to 8-bit integers too. Each token gets its scale at run time (see
    `TokenRounding`), and scores are those of the product of integers. This takes no bits of the checkpoint.

    Source: Dettmers et al., LLM.int8(), NeurIPS 2022, section 2; the baseline of Divergent Token Metrics, NAACL 2024.
    Scales per token: Yao et al., ZeroQuant, NeurIPS 2022, section 4.1.
    """

    granularity: Granularity = Granularity.row
    group: int = 0
    activations: Activations = Activations.none

    name: ClassVar[str] = "int8"
    stored_as: ClassVar[Storage] = Storage.integers

    @property
    def transforms_inputs(self) -> bool:
        return self.activations is Activations.token

    def check_options(self) -> None:
        least = int(self.granularity is Granularity.group)
        check_option(self, "group", self.group >= least, f"at least {least}", "32")
        if self.group and self.granularity is Granularity.tensor:
            raise ConfigError(
                f"`compressor.int8.group` must be 0 with granularity `tensor`, got {self.group}; drop one of the two"
            )

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return offer_bits(self, [8], component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> QuantizedMatrix:
        bits = choose_bits(self, amount, context.component)
        whole = self.granularity is Granularity.tensor
        rounding = RoundToNearest(bits, self.group, balanced=True, whole_matrix=whole)
        found = rounding.quantize(weight, context.component)
        return replace(found, input_rounding=INPUTS) if self.transforms_inputs else found
