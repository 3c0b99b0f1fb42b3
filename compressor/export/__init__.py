"""Saves the compressed model as a folder that transformers loads, and checks that it gives the scored logits."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.contracts import Plan, QuantizedMatrix
from compressor.errors import ConfigError, suggest
from compressor.export.compressed_tensors import (
    COMPRESSED_TENSORS,
    is_installed,
    pack_modules,
    require_package,
    save_compressed,
)
from compressor.export.file_sizes import FileSizes
from compressor.export.folder import DENSE, Exported, holds_exactly, save_dense
from compressor.export.gguf import check_gguf
from compressor.export.packable_modules import NOT_INTEGERS, note_dense
from compressor.export.verification import tell, verify
from compressor.models import Model

AUTO = "auto"
FORMATS = (AUTO, DENSE, COMPRESSED_TENSORS)
NOTHING = (
    f"The saved model is dense and nothing is packed in the format `{COMPRESSED_TENSORS}`, which was asked for: no "
    "kept treatment stores a weight in fewer bits than the dense one has."
)


def check_format(name: str) -> None:
    """Raises ConfigError for an unknown format, or one whose package is missing."""
    if name not in FORMATS:
        raise ConfigError(f"unknown `export.format` `{name}`; {suggest(name, FORMATS)}")
    if name == COMPRESSED_TENSORS:
        require_package()


def save(
    name: str,
    model: Model,
    folder: Path,
    plan: Plan,
    provenance: Mapping[str, Any],
    quantized: Mapping[str, QuantizedMatrix | None],
) -> Exported:
    """Save the model in the format `name` to `folder`, which is replaced.

    `quantized` has the components whose treatment takes fewer bits than a dense weight; the value is None if a weight
    does not consist of integers, scales and zero points. A weight that cannot be packed without changing a value is
    saved dense. Notes report components that are not packed, and input transforms that are not in the saved model.
    """
    exported = None
    notes: list[str] = []
    if name != DENSE and quantized:
        if is_installed():
            modules, reasons = pack_modules(model, quantized)
            exported = save_compressed(model, folder, plan, provenance, modules) if modules else None
            notes = note_dense(reasons)
        else:
            notes = note_missing_package(quantized)
    elif name == COMPRESSED_TENSORS:
        notes = [NOTHING]
    exported = exported or save_dense(model, folder, plan, provenance)
    return add_notes(exported, [*notes, *note_untransformed(model, exported)])


def save_gguf(model: Model, path: Path, quantized: Mapping[str, QuantizedMatrix | None]) -> Exported:
    """Write a model that `check_gguf` accepts to one file, for llama.cpp; `quantized` as `save` takes them."""
    from compressor.export.gguf import saving

    exported = saving.save(model, path, quantized)
    return add_notes(exported, note_untransformed(model, exported))


def list_untransformed(model: Model, exported: Exported) -> list[str]:
    """The components with an input transform in the scored model that the saved model does not have."""
    return [name for name in model.input_transforms.names if name not in exported.treated]


def note_untransformed(model: Model, exported: Exported) -> list[str]:
    """A note on input transforms that the saved model does not have."""
    if not (names := list_untransformed(model, exported)):
        return []
    return [
        f"{exported.title} lacks a part of the scored model: {len(names)} components, `{names[0]}` first, transformed "
        "their inputs, which this format cannot store. Loaded by transformers, it does not transform them, and has "
        "other scores than those of this report."
    ]


def add_notes(exported: Exported, notes: list[str]) -> Exported:
    return dataclasses.replace(exported, notes=(*exported.notes, *notes))


def note_missing_package(quantized: Mapping[str, QuantizedMatrix | None]) -> list[str]:
    """A note on components that are saved dense because a package is missing."""
    count = sum(matrix is not None for matrix in quantized.values())
    if not count:
        return note_dense(dict.fromkeys(quantized, NOT_INTEGERS))
    return [
        f"The integers of {count} components are saved as dense weights, because the package {COMPRESSED_TENSORS} is "
        "missing: pip install 'compressor[export]'."
    ]


__all__ = [
    "AUTO",
    "DENSE",
    "Exported",
    "FileSizes",
    "check_format",
    "check_gguf",
    "holds_exactly",
    "list_untransformed",
    "save",
    "save_dense",
    "save_gguf",
    "tell",
    "verify",
]
