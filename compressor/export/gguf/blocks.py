"""Tensors in GGUF: blocks of integers with one scale each if that is exact, else floating point."""

from dataclasses import dataclass

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.contracts import QuantizedMatrix

BLOCK = 32
"""The number of neighbours along a row that share a scale."""
NARROW = 4
"""Integers of at most so many bits are stored as Q4_0, wider ones as Q8_0."""
FLOATS = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
NO_ZEROS = "GGUF's blocks have no zero points, and 8-bit integers cannot be stored without them"
UNEVEN = "GGUF's blocks are 32 weights of a row: rows and groups must be multiples of that"
SCALES = "GGUF's scales are float16, which does not represent these exactly"
INEXACT = "GGUF's blocks decode to other values than the scored ones"


@dataclass(frozen=True)
class Stored:
    """A stored tensor of the type `kind`, with `content` uint8 `[…, bytes of a row]`."""

    kind: gguf.GGMLQuantizationType
    content: NDArray[np.uint8]

    def ordered(self, rows: Tensor | None) -> "Stored":
        """The same tensor with its rows in the order `rows`; None leaves them unchanged."""
        return self if rows is None else Stored(self.kind, self.content[rows.numpy()])


def store_dense(tensor: Tensor, dtype: torch.dtype) -> Stored:
    """The tensor in floating point of this dtype; a vector in float32, as llama.cpp requires."""
    values = tensor.detach().to("cpu", torch.float32 if tensor.ndim < 2 else dtype).contiguous()
    return Stored(FLOATS[values.dtype], values.view(torch.uint8).numpy())


def store_quantized(matrix: QuantizedMatrix, scored: Tensor) -> Stored | str:
    """`matrix` as Q4_0 or Q8_0, if that decodes to `scored` `[out, in]` bit for bit; else the reason why not.

    A scale that is shared by more than 32 neighbours is stored once for each 32.
    """
    symmetric = matrix.without_zeros()
    if symmetric is None:
        return NO_ZEROS
    out, width = symmetric.integers.shape
    shares = symmetric.scheme.group or width
    if width % BLOCK or shares % BLOCK:
        return UNEVEN
    blocks = width // BLOCK
    scales = symmetric.scales.cpu().float().expand(out, -1).repeat_interleave(shares // BLOCK, 1)[:, :blocks]
    steps = scales.half()
    if not torch.equal(steps.float(), scales):
        return SCALES
    integers = symmetric.integers.cpu().view(out, blocks, BLOCK)
    stored = join(steps, integers, narrow=symmetric.integer_bits <= NARROW)
    read = torch.from_numpy(gguf.dequantize(stored.content, stored.kind))
    return stored if torch.equal(read.to(scored.dtype), scored.cpu()) else INEXACT


def join(steps: Tensor, integers: Tensor, narrow: bool) -> Stored:
    """Blocks from scales `[out, block]` in float16 and integers `[out, block, 32]`.

    A byte of Q4_0 holds q + 8 of a weight in the low bits, and of the weight 16 places later in the high bits.
    """
    heads = steps.contiguous().view(torch.uint8).view(*steps.shape, 2)
    if narrow:
        low, high = (integers + 8).view(torch.uint8).split(BLOCK // 2, dim=-1)
        kind, numbers = gguf.GGMLQuantizationType.Q4_0, low | high << 4
    else:
        kind, numbers = gguf.GGMLQuantizationType.Q8_0, integers.view(torch.uint8)
    return Stored(kind, torch.cat([heads, numbers], dim=-1).flatten(1).numpy())
