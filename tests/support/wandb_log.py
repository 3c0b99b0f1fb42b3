"""Reads what an offline run of Weights & Biases has written to disk."""

import json
import struct
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
"""W&B's log is written in blocks as LevelDB's: a chunk has a header of checksum, length and type."""


def read_log(folder: Path) -> list[Any]:
    """The records of the one offline run under `folder`, as wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    assert data.startswith(b":W&B")
    records, record, position = [], b"", HEADER
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        position += HEADER + length
        record += data[position - length : position]
        if kind in (1, 4):  # whole, or the last chunk of several
            records.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return records


def read_items(items: Any) -> dict[str, Any]:  # noqa: ANN401 - wandb's messages are untyped
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
