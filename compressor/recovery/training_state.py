"""What an interrupted training goes on with: tensors and facts in one file, which is replaced in one step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.artifacts.checked_arrays import read_arrays, write_arrays

INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""16-bit floating point numbers are stored as integers with the same bits, because numpy has no bfloat16."""


@dataclass(frozen=True)
class TrainingState:
    """Tensors by name, and facts that JSON can hold."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def write_state(path: Path, key: str, state: TrainingState) -> None:
    """Write a state; raises OutputError."""
    arrays = {
        f"{name}|{str(tensor.dtype).removeprefix('torch.')}": tensor.view(INTEGERS.get(tensor.dtype, tensor.dtype))
        .cpu()
        .numpy()
        for name, tensor in state.tensors.items()
    }
    write_arrays(path, key, arrays, state.facts)


def read_state(path: Path, key: str) -> TrainingState | None:
    """The state with this key; None if there is none. A damaged one is kept aside, as one line of the log says."""
    found = read_arrays(path, key, lost="this training starts again")
    if found is None:
        return None
    tensors = {}
    for name, array in found.arrays.items():
        start, _, dtype = name.rpartition("|")
        tensors[start] = torch.from_numpy(array).view(getattr(torch, dtype))
    return TrainingState(tensors, found.facts)
