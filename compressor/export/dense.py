"""Every weight in full, zeros and rounded values included."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.export.folder import Exported, cast_state, choose_dtype, count_bits, name_dtype, write_folder
from compressor.models import Model
from compressor.values import Plan

DENSE = "dense"


def save_dense(model: Model, folder: Path, plan: Plan, provenance: Mapping[str, Any]) -> Exported:
    """Save weights, config, generation settings, tokenizer and `compression.json` to `folder`, which is replaced.

    Every value is stored as it was scored: in the checkpoint's own dtype where that loses nothing.
    """
    dtype = choose_dtype(model)
    state = cast_state(model.network.state_dict(), lambda tensor: dtype)
    size = write_folder(model, folder, plan, provenance, state, lambda folder: {"dtype": name_dtype(dtype)})
    notes: tuple[str, ...] = ()
    if dtype != model.stored_dtype:
        notes = (f"The model is saved in {dtype}: {model.stored_dtype} does not hold its values exactly.",)
    return Exported(folder, DENSE, dtype, size, count_bits(model, state), notes=notes)
