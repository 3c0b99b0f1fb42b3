"""LLM.int8(): input features with outliers, and the weight columns they multiply, stay in floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    Offer,
    QuantizedMatrix,
    Storage,
    working_dtype,
)

from ..options import check_option
from ..weight_checks import check_finite
from .options import choose_bits, offer_bits
from .rounding import RoundToNearest

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 127


@dataclass(frozen=True, eq=False)
class MixedInputs:
    """Leaves the input features `kept` `[in]` unchanged; rounds the other features of a token x with one scale.

    s = max|x| / 127 over the other features, q = round(x / s), x̂ = s · q, in float32, then in the dtype of x.
    """

    kept: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """x̂ `[..., in]`, in the dtype of `inputs`."""
        others = inputs.to(working_dtype(inputs.dtype)).masked_fill(self.kept, 0)
        scales = others.abs().amax(-1, keepdim=True) / LIMIT
        scales = scales.masked_fill(scales == 0, 1)
        rounded = scales * (others / scales).round().clamp(-LIMIT, LIMIT)
        return inputs.where(self.kept, rounded.to(inputs.dtype))


@dataclass(frozen=True)
class MixedWeight(CompressedWeight):
    """16-bit `columns` `[out, kept]` for the features `kept` `[in]`; `others` holds integers, 0 in kept columns."""

    others: QuantizedMatrix
    columns: Tensor
    kept: Tensor

    def dense(self) -> Tensor:
        dense = self.others.dense()
        dense[:, self.kept] = self.columns.to(dense.dtype)
        return dense

    @property
    def bits(self) -> int:
        """Integers and scales of the other columns; values and a 32-bit index of each kept column."""
        others, kept = self.others, self.columns.shape[1]
        integers = (others.integers.numel() - self.columns.numel()) * others.integer_bits
        return integers + 8 * (others.scales.nbytes + self.columns.nbytes) + 32 * kept

    @property
    def input_transform(self) -> MixedInputs:
        return MixedInputs(self.kept)


@dataclass
class LlmInt8(Compressor):
    """8-bit integers, except for the few input features with outliers, which stay in floating point.

    Feature j is kept if max_t |x_tj| ≥ `threshold` over the calibration tokens t. With the kept features K

        x Wᵀ ≈ Σ_{j ∈ K} x_j w_j + s_x s_w Σ_{j ∉ K} q_xj q_wj

    where s_w = max|w| / 127 in each output row and s_x = max|x| / 127 in each token, both over the features that are
    not kept. Kept columns of W are stored in 16 bits (exact for a 16-bit checkpoint) together with their indices. The
    amount is 1 − 8 / stored bits. Kept columns, indices and scales are stored in addition, and counted.

    Source: Dettmers et al., LLM.int8(), NeurIPS 2022 (arXiv 2208.07339), section 3. The paper finds the features in
    every batch and converts their columns of W back to 16 bits; here calibration data decide once what is stored.
    """

    threshold: float = 6.0

    name: ClassVar[str] = "llm_int8"
    stored_as: ClassVar[Storage] = Storage.other
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})

    @property
    def transforms_inputs(self) -> bool:
        return True

    def check_options(self) -> None:
        check_option(self, "threshold", self.threshold > 0, "positive", "6.0")

    def offer(self, component: Component) -> Offer:
        self.check_options()
        return offer_bits(self, [8], component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> MixedWeight:
        component = context.component
        bits = choose_bits(self, amount, component)
        kept = context.calibration["absmax"] >= self.threshold
        check_finite(weight, component)
        others = RoundToNearest(bits, weight.shape[1], balanced=True).quantize(weight.masked_fill(kept, 0), component)
        return MixedWeight(others, halve(weight[:, kept]), kept)


def halve(values: Tensor) -> Tensor:
    """`values` in 16 bits: float16 or bfloat16 if that is exact, else float16 unless it overflows, else bfloat16."""
    import torch

    for rounded in (values.half(), values.bfloat16()):
        if torch.equal(rounded.to(values.dtype), values):
            return rounded
    rounded, widest = values.half(), torch.finfo(torch.bfloat16)
    return rounded if bool(rounded.isfinite().all()) else values.clamp(widest.min, widest.max).bfloat16()
