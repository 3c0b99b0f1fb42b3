"""The dense format: all weights in floating point, including zeros and rounded values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.contracts import Plan
from compressor.export.folder import (
    Exported,
    cast_state,
    choose_saved_dtype,
    choose_stored,
    count_bits,
    name_dtype,
    write_folder,
)
from compressor.models import Model

DENSE = "dense"


def save_dense(model: Model, folder: Path, plan: Plan, provenance: Mapping[str, Any]) -> Exported:
    """Save weights, config, generation settings, tokenizer and `compression.json` to `folder`, which is replaced.

    Every tensor keeps its scored values; it is in the checkpoint's dtype if that is exact.
    """
    dtype, stored = choose_saved_dtype(model), model.stored_dtype
    state = cast_state(model.network.state_dict(), lambda tensor: choose_stored(model, tensor))
    size = write_folder(model, folder, plan, provenance, state, lambda folder: {"dtype": name_dtype(dtype)})
    wide = sum(tensor.is_floating_point() and tensor.dtype != stored for tensor in state.values())
    notes = (f"{wide} tensors are saved in {dtype}: {stored} does not represent their values exactly.",) if wide else ()
    return Exported(folder, DENSE, dtype, size, count_bits(model, state), notes=notes)
