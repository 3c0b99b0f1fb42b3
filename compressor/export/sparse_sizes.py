"""What the weight files would take if their zeros took less: with a bitmask for each pruned matrix, and by zstd.

No format that is served stores zeros so; the files themselves are dense.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import zstandard

from compressor.artifacts.run_record import ComponentRecord

LEVEL = 3
"""Of zstd: its default. Higher levels take many times as long for a few percent, as weights hardly repeat."""
PART = 1 << 24
"""Bytes that are read at a time."""


def count_bitmask_bytes(size: int, components: Mapping[str, ComponentRecord], packed: Collection[str]) -> int:
    """Bytes of files that take `size`, if each matrix that is not `packed` is stored as a bitmask where that is less.

    n weights of b bits, of which a share s is zero, then take n + (1 − s) n b bits: one bit for each weight, and the
    weights that are not zero.
    """
    saved = 0.0
    for name, component in components.items():
        if name not in packed:
            saved += component.parameters * max(0.0, component.sparsity * component.bits_per_weight - 1)
    return round(size - saved / 8)


def measure_zstd(folder: Path) -> int:
    """Bytes of the weight files of a saved model if each is compressed by zstd; nothing is written."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        packer = zstandard.ZstdCompressor(level=LEVEL, threads=-1).compressobj()
        with path.open("rb") as weights:
            while part := weights.read(PART):  # a signal is seen after each part
                total += len(packer.compress(part))
        total += len(packer.flush())
    return total
