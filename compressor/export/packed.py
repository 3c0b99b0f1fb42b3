"""Saves a model whose treated modules are integers, where that changes no value, and tells which cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compressor.contracts import Grid, Plan, Scheme
from compressor.export.compressed_tensors import (
    COMPRESSED_TENSORS,
    describe_format,
    pack_grid,
    read_back,
    reads_zeros,
)
from compressor.export.folder import (
    Exported,
    cast_state,
    choose_saved_dtype,
    choose_stored,
    count_bits,
    name_dtype,
    write_folder,
)
from compressor.export.packable_modules import list_linears, sort_components
from compressor.export.vllm_checks import tell_vllm
from compressor.models import Model

INEXACT = "the format's own reader would round its values differently"
NO_ZEROS = "transformers cannot load packed zero points here, and 8 bits leave no room to do without them"


def list_ignored(model: Model, folder: Path, packed: Mapping[str, Scheme]) -> list[str]:
    """Names of whatever could be taken for a linear module and is not packed, as modules here and as tensors on disk.

    Both, because transformers gives some modules other names than the checkpoint.
    """
    names = dict.fromkeys(path for path in list_linears(model.network) if path not in packed)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            stored = {name: tensors.get_slice(name) for name in tensors.keys()}
            matrices = [name for name, one in stored.items() if len(one.get_shape()) > 1 and one.get_dtype() != "I8"]
        names |= dict.fromkeys(name.removesuffix(".weight") for name in matrices if name.endswith(".weight"))
    return list(names)


@dataclass(frozen=True)
class Packing:
    """Modules as they are stored: their `schemes` and their `tensors` by suffix; why other components stay dense.

    `widened` are modules with a bit more for each weight in place of zero points.
    """

    schemes: dict[str, Scheme] = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    widened: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Packed:
    """One weight as it is stored, its tensors by suffix; `widened` by a bit in place of zero points."""

    scheme: Scheme
    tensors: dict[str, Tensor]
    widened: bool


def pack_weight(grid: Grid, scored: Tensor, dtype: torch.dtype) -> Packed | str:
    """`scored` `[out, in]` as its grid says, if a model of this dtype reads it back bit for bit; else why it cannot."""
    readable = grid if reads_zeros() else grid.without_zeros()
    if readable is None:
        return NO_ZEROS
    tensors = pack_grid(readable)
    if not torch.equal(read_back(tensors, readable.scheme, dtype), scored.to("cpu", dtype)):
        return INEXACT
    return Packed(readable.scheme, tensors, readable is not grid)


def pack_modules(model: Model, grids: Mapping[str, Grid | None]) -> Packing:
    """Pack what gives back the scored weight bit for bit; `grids` are those of treated components, None for no grid."""
    found, dtype = sort_components(model, grids), choose_saved_dtype(model)
    packing = Packing(reasons=dict(found.reasons))
    for path, grid in found.grids.items():
        module = model.network.get_submodule(path)
        packed = pack_weight(grid, module.weight.detach(), dtype)
        if isinstance(packed, str):
            inside = [name for name, weight_view in model.weight_views.items() if weight_view.owner is module]
            packing.reasons.update(dict.fromkeys(inside, packed))
        else:
            packing.schemes[path], packing.tensors[path] = packed.scheme, packed.tensors
            packing.widened.extend([path] if packed.widened else [])
    return packing


def tell_widened(packing: Packing) -> tuple[str, ...]:
    """That some modules take a bit more than their treatment says."""
    if not packing.widened:
        return ()
    return (
        f"{len(packing.widened)} modules have one bit more for each weight in place of zero points, which transformers "
        f"does not load with this version of {COMPRESSED_TENSORS}; `{packing.widened[0]}` is the first.",
    )


def save_compressed(
    model: Model, folder: Path, plan: Plan, provenance: Mapping[str, Any], packing: Packing
) -> Exported:
    """As `save_dense`, with packed modules as they are in `packing`; at least one.

    Every other tensor is stored as it was scored: in the checkpoint's own dtype where that loses nothing.
    """
    dtype, schemes = choose_saved_dtype(model), packing.schemes
    dense = model.network.state_dict()
    for path in schemes:
        del dense[f"{path}.weight"]
    state = cast_state(dense, lambda tensor: choose_stored(model, tensor))
    for path, tensors in packing.tensors.items():
        state |= {f"{path}.{suffix}": tensor for suffix, tensor in tensors.items()}

    def describe(folder: Path) -> dict[str, Any]:
        described = describe_format(schemes, list_ignored(model, folder, schemes))
        return {"dtype": name_dtype(dtype), "quantization_config": described}

    size = write_folder(model, folder, plan, provenance, state, describe)
    owners = {id(model.network.get_submodule(path)) for path in schemes}
    packed = frozenset(name for name, weight_view in model.weight_views.items() if id(weight_view.owner) in owners)
    treated = packed & {*model.input_transforms.names}
    notes = (*tell_widened(packing), *tell_vllm(model, schemes))
    return Exported(folder, COMPRESSED_TENSORS, dtype, size, count_bits(model, state), packed, treated, notes)
