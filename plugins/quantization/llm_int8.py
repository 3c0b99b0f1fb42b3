"""LLM.int8(): inputs with outliers stay in floating point, with the weights that they are multiplied with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer, QuantizedMatrix, working_dtype
from compressor.errors import ConfigError

from .options import choose_bits, offer_bits
from .rounding import RoundToNearest, check_finite

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 127


@dataclass(frozen=True, eq=False)
class MixedInputs:
    """Inputs of the features `kept` `[in]` as they are; the others of a token x are integers with one scale.

    s = max|x| / 127 over the others, q = round(x / s), x̂ = s · q, in float32 and then rounded to the dtype of x.
    """

    kept: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """x̂ `[..., in]`, in the dtype of `inputs`."""
        import torch

        others = inputs.to(working_dtype(inputs.dtype)).masked_fill(self.kept, 0)
        scales = others.abs().amax(-1, keepdim=True) / LIMIT
        scales = scales.masked_fill(scales == 0, 1)
        rounded = scales * (others / scales).round().clamp(-LIMIT, LIMIT)
        return torch.where(self.kept, inputs, rounded.to(inputs.dtype))


@dataclass(frozen=True)
class MixedWeight(CompressedWeight):
    """Columns of the features `kept` `[in]` in 16 bits, `columns` `[out, kept]`; `others` has integers, 0 in these."""

    others: QuantizedMatrix
    columns: Tensor
    kept: Tensor

    def dense(self) -> Tensor:
        dense = self.others.dense()
        dense[:, self.kept] = self.columns.to(dense.dtype)
        return dense

    @property
    def bits(self) -> int:
        """Of the other columns, integers and scales; of the kept ones, values and an index of 32 bits each."""
        others, kept = self.others, self.columns.shape[1]
        integers = (others.integers.numel() - self.columns.numel()) * others.integer_bits
        return integers + 8 * (others.scales.nbytes + self.columns.nbytes) + 32 * kept

    @property
    def input_transform(self) -> MixedInputs:
        return MixedInputs(self.kept)


@dataclass
class LlmInt8(Compressor):
    """8-bit integers but for the few input features that have outliers: these stay in floating point.

    A feature j is kept where max_t |x_tj| ≥ `threshold` over the calibration tokens t. With the kept features K

        x Wᵀ ≈ Σ_{j ∈ K} x_j w_j + s_x s_w Σ_{j ∉ K} q_xj q_wj

    s_w = max|w| / 127 in each output row and s_x = max|x| / 127 in each token, both over the features that are not
    kept. Kept columns of W are stored in 16 bits, which is exact for a checkpoint of 16 bits, and counted with their
    numbers. The amount is 1 − 8 / stored bits; kept columns and scales come on top.

    Source: Dettmers et al., LLM.int8(), NeurIPS 2022 (arXiv 2208.07339), section 3. There features are found in every
    batch, for which columns of W become 16 bits again; here calibration decides once what is stored.
    """

    threshold: float = 6.0

    name: ClassVar[str] = "llm_int8"
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})

    @property
    def transforms_inputs(self) -> bool:
        return True

    def offer(self, component: Component) -> Offer:
        if not self.threshold > 0:
            raise ConfigError(
                f"`compressor.llm_int8.threshold` must be positive, got {self.threshold}; give for example 6.0"
            )
        return offer_bits(self.name, [8], component)

    def compress(self, weight: Tensor, amount: float, context: Context) -> MixedWeight:
        component = context.component
        bits = choose_bits(self.name, self.offer(component), amount, component)
        kept = context.calibration["absmax"] >= self.threshold
        check_finite(weight, component)
        others = RoundToNearest(bits, weight.shape[1], balanced=True).quantize(weight.masked_fill(kept, 0), component)
        return MixedWeight(others, halve(weight[:, kept]), kept)


def halve(values: Tensor) -> Tensor:
    """`values` in 16 bits: as float16 or bfloat16 where one is exact, else as the first that holds their range."""
    import torch

    for rounded in (values.half(), values.bfloat16()):
        if torch.equal(rounded.to(values.dtype), values):
            return rounded
    rounded, widest = values.half(), torch.finfo(torch.bfloat16)
    return rounded if bool(rounded.isfinite().all()) else values.clamp(widest.min, widest.max).bfloat16()
