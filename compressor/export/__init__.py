"""Saves the compressed model as a folder that transformers loads, and checks that it gives the scored logits."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compressor.contracts import Plan, QuantizedMatrix
from compressor.errors import ConfigError
from compressor.export.compressed_tensors import pack_modules, save_compressed
from compressor.export.cutting import cut_model
from compressor.export.file_sizes import FileSizes
from compressor.export.folder import Exported, check_savable, holds_exactly, save_dense
from compressor.export.packable_modules import NOT_INTEGERS, note_dense
from compressor.export.sparse_sizes import count_bitmask_bytes, measure_zstd
from compressor.export.verification import describe_verification, verify
from compressor.export_formats import AUTO, COMPRESSED_TENSORS, DENSE, is_installed
from compressor.models import Model

NOTHING = (
    f"The saved model is dense and nothing is packed in the format `{COMPRESSED_TENSORS}`, which was asked for: no "
    "kept treatment stores a weight in fewer bits than the dense one has."
)
PACKED = (
    "Nothing was cut, because the saved model has packed weights; export.format=dense saves them dense, and cuts rows "
    "and columns that add nothing."
)


def save(
    name: str,
    model: Model,
    folder: Path,
    plan: Plan,
    provenance: Mapping[str, Any],
    quantized: Mapping[str, QuantizedMatrix | None],
    cut: bool = False,
) -> Exported:
    """Save the model in the format `name` to `folder`, which is replaced.

    With `cut`, rows and columns that add nothing are cut out of a dense model.

    `quantized` has the components whose treatment takes fewer bits than a dense weight; the value is None if a weight
    does not consist of integers, scales and zero points. A weight that cannot be packed without changing a value is
    saved dense. Notes report components that are not packed, and input transforms that are not in the saved model.
    """
    exported = None
    notes: list[str] = []
    if name != DENSE and quantized:
        count = sum(matrix is not None for matrix in quantized.values())
        if is_installed():
            modules, reasons = pack_modules(model, quantized)
            exported = save_compressed(model, folder, plan, provenance, modules) if modules else None
            notes = note_dense(reasons)
        elif count:
            notes = [
                f"The integers of {count} components are saved as dense weights, because the package "
                f"{COMPRESSED_TENSORS} is missing: pip install 'compressor[export]'."
            ]
        else:
            notes = note_dense(dict.fromkeys(quantized, NOT_INTEGERS))
    elif name == COMPRESSED_TENSORS:
        notes = [NOTHING]
    if exported is None:
        exported = (save_cut if cut else save_dense)(model, folder, plan, provenance)
    elif cut:
        notes.append(PACKED)
    return add_notes(model, exported, notes)


def save_cut(model: Model, folder: Path, plan: Plan, provenance: Mapping[str, Any]) -> Exported:
    """Like `save_dense`, without rows and columns that add nothing; `bits` are for each weight of the whole model."""
    smaller, notes = cut_model(model)
    exported = save_dense(smaller, folder, plan, provenance)
    sizes = {name: (smaller.components[name].parameters, one.parameters) for name, one in model.components.items()}
    bits = {name: exported.bits[name] * kept / whole for name, (kept, whole) in sizes.items()}
    return dataclasses.replace(exported, bits=bits, is_cut=smaller is not model, notes=(*exported.notes, *notes))


def check_gguf(model: Model) -> None:
    """Raises ConfigError if the model cannot be written as a GGUF file."""
    from compressor.export.gguf.saving import find_obstacle

    if reason := find_obstacle(model):
        raise ConfigError(f"`export.gguf=true` is not possible for {model.folder}: {reason}; leave it out")


def save_gguf(model: Model, path: Path, quantized: Mapping[str, QuantizedMatrix | None]) -> Exported:
    """Write a model that `check_gguf` accepts to one file, for llama.cpp; `quantized` as `save` takes them."""
    from compressor.export.gguf import saving

    return add_notes(model, saving.save(model, path, quantized))


def list_untransformed(model: Model, exported: Exported) -> list[str]:
    """The components with an input transform in the scored model that the saved model does not have."""
    return [name for name in model.input_transforms.names if name not in exported.treated]


def add_notes(model: Model, exported: Exported, notes: Iterable[str] = ()) -> Exported:
    """The same with these notes, and one on input transforms that the saved model does not have."""
    added = [*exported.notes, *notes]
    if names := list_untransformed(model, exported):
        added.append(
            f"{exported.title} lacks a part of the scored model: {len(names)} components, `{names[0]}` first, "
            "transformed their inputs, which this format cannot store. Loaded by transformers, it does not transform "
            "them, and has other scores than those of this report."
        )
    return dataclasses.replace(exported, notes=tuple(added))


__all__ = [
    "AUTO",
    "DENSE",
    "Exported",
    "FileSizes",
    "check_gguf",
    "check_savable",
    "count_bitmask_bytes",
    "describe_verification",
    "holds_exactly",
    "list_untransformed",
    "measure_zstd",
    "save",
    "save_dense",
    "save_gguf",
    "verify",
]
