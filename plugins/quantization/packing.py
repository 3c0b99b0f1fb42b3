"""Integers of 2 to 8 bits, packed tightly into bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pack(integers: Tensor, bits: int) -> Tensor:
    """⌈n · bits / 8⌉ bytes, uint8: the n integers in the order of `[out, in]`, lowest bit first, nothing in between.

    An integer q is stored as q + 2^(bits−1); eight of them fill exactly `bits` bytes.
    """
    import torch
    from torch.nn.functional import pad

    count = integers.numel()
    # Lanes that are filled up hold what is stored as 0.
    lanes = pad(integers.reshape(-1), (0, -count % 8), value=-(2 ** (bits - 1))).view(-1, 8)
    words = torch.zeros(len(lanes), dtype=torch.int64, device=integers.device)
    for lane in range(8):
        words |= (lanes[:, lane].long() + 2 ** (bits - 1)) << (bits * lane)
    packed = torch.stack([(words >> (8 * byte) & 0xFF).to(torch.uint8) for byte in range(bits)], dim=1)
    return packed.flatten()[: -(-count * bits // 8)]


def unpack(packed: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """Undo `pack`: int8 integers of the given `[out, in]`."""
    import torch
    from torch.nn.functional import pad

    lanes = pad(packed, (0, -len(packed) % bits)).view(-1, bits)
    words = torch.zeros(len(lanes), dtype=torch.int64, device=packed.device)
    for byte in range(bits):
        words |= lanes[:, byte].long() << (8 * byte)
    mask = 2**bits - 1
    integers = torch.stack([(words >> (bits * lane) & mask) - 2 ** (bits - 1) for lane in range(8)], dim=1)
    return integers.flatten()[: shape[0] * shape[1]].view(shape).to(torch.int8)
