"""The format that transformers and vLLM read, a config group for each scheme.

Integers are packed into words of 32 bits, or lie as bytes where inputs are rounded too: so vLLM wants it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from compressor.errors import ConfigError
from compressor.export.folder import (
    Exported,
    cast_state,
    choose_dtype,
    count_bits,
    holds_exactly,
    name_dtype,
    write_folder,
)
from compressor.export.linears import list_linears, sort_components
from compressor.export.vllm import tell_vllm
from compressor.grids import Grid, Scheme, Strategy
from compressor.models import Model
from compressor.values import Plan

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

COMPRESSED_TENSORS = "compressed-tensors"
PACKED, BYTES, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
"""How a scheme is stored, and what a checkpoint is called in which schemes are stored in both ways."""
OLDEST = (0, 20)
"""The version of the package that this is made for and tested with."""
INEXACT = "the format's own reader would round its values differently"
NO_ZEROS = "transformers cannot load packed zero points here, and 8 bits leave no room to do without them"


def is_installed() -> bool:
    """Is there a package `compressed-tensors` with which transformers reads what is saved?"""
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(COMPRESSED_TENSORS)
        return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) >= OLDEST
    return False


def require_package() -> None:
    """Raises ConfigError where the package is missing or too old."""
    if not is_installed():
        raise ConfigError(
            f"`export.format={COMPRESSED_TENSORS}` needs the package {COMPRESSED_TENSORS} "
            f"{'.'.join(map(str, OLDEST))} or later: pip install 'compressor[export]'"
        )


def describe_scheme(scheme: Scheme, targets: Sequence[str]) -> QuantizationScheme:
    """The scheme in the package's words, for modules of these names."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    inputs = None
    if scheme.inputs is not None:
        inputs = QuantizationArgs(
            num_bits=scheme.inputs.bits, type="int", symmetric=True, strategy="token", dynamic=True
        )
    weights = QuantizationArgs(
        num_bits=scheme.bits,
        type="int",
        symmetric=scheme.symmetric,
        strategy=scheme.strategy.value,
        group_size=scheme.group or None,
    )
    return QuantizationScheme(
        targets=list(targets), weights=weights, input_activations=inputs, format=name_storage(scheme)
    )


def name_storage(scheme: Scheme) -> str:
    """How the format calls the way in which weights of a scheme are stored."""
    return PACKED if scheme.inputs is None else BYTES


def pack_grid(grid: Grid) -> dict[str, Tensor]:
    """The tensors of one module, by suffix.

    `weight_packed` int32 `[out, ⌈in · b / 32⌉]`: each row's q + 2^(b−1), lowest bit first, without gaps; `weight_scale`
    like s, `[1]` for the matrix; `weight_zero_point` int32 `[⌈out · b / 32⌉, group]`: z packed along `out`;
    `weight_shape` `[out, in]`. Where inputs are rounded too, `weight` int8 `[out, in]` in place of the first and last.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    scales = grid.scales.flatten() if grid.scheme.strategy is Strategy.tensor else grid.scales
    if grid.inputs is not None:
        return {"weight": grid.integers.contiguous(), "weight_scale": scales.contiguous()}
    tensors = {
        "weight_packed": pack_to_int32(grid.integers, grid.bits),
        "weight_scale": scales.contiguous(),
        "weight_shape": torch.tensor(grid.integers.shape),
    }
    if grid.zeros is not None:
        tensors["weight_zero_point"] = pack_to_int32(grid.zeros, grid.bits, packed_dim=0)
    return tensors


def read_back(tensors: Mapping[str, Tensor], scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """`[out, in]`: what the package's own reader makes of the tensors in a model of this dtype."""
    from compressed_tensors.compressors import BaseCompressor

    reader = BaseCompressor.get_value_from_registry(name_storage(scheme))
    loaded = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    weight: Tensor = reader.decompress(loaded, describe_scheme(scheme, []))["weight"]
    return weight


@functools.cache
def reads_zeros() -> bool:
    """Does the package prepare a model for zero points as they are packed? Version 0.20.0 expects them unpacked."""
    from compressed_tensors.compressors import BaseCompressor

    scheme = describe_scheme(Scheme(4, Strategy.channel, 0, False), [])
    empty = {"weight": torch.empty(32, 32), "weight_scale": torch.empty(32, 1)}
    empty["weight_zero_point"] = torch.empty(32, 1, dtype=torch.int8)
    prepared = BaseCompressor.get_value_from_registry(PACKED).compress(
        {name: tensor.to("meta") for name, tensor in empty.items()}, scheme
    )
    return bool(prepared["weight_zero_point"].shape == (4, 1))


def describe_format(schemes: Mapping[str, Scheme], ignore: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of config.json: a config group for each of the `schemes` of modules, the rest ignored."""
    from compressed_tensors.quantization import QuantizationConfig

    groups = {
        f"group_{number}": describe_scheme(scheme, [path for path, one in schemes.items() if one == scheme])
        for number, scheme in enumerate(dict.fromkeys(schemes.values()))
    }
    storages = {name_storage(scheme) for scheme in schemes.values()}
    config = QuantizationConfig(
        config_groups=groups,
        format=MIXED if len(storages) > 1 else storages.pop(),
        quantization_status="compressed",
        ignore=list(ignore),
    )
    version = importlib.metadata.version(COMPRESSED_TENSORS)
    described: dict[str, Any] = config.model_dump(mode="json")
    return described | {"version": version}


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


def pack_modules(model: Model, grids: Mapping[str, Grid | None]) -> Packing:
    """Pack what gives back the scored weight bit for bit; `grids` are those of treated components, None for no grid."""
    found, dtype = sort_components(model, grids), choose_dtype(model)
    packing = Packing(reasons=dict(found.reasons))
    for path, whole in found.grids.items():
        module, grid = model.network.get_submodule(path), whole if reads_zeros() else whole.without_zeros()
        tensors = {} if grid is None else pack_grid(grid)
        scored = module.weight.detach().to("cpu", dtype)
        if grid is not None and torch.equal(read_back(tensors, grid.scheme, dtype), scored):
            packing.schemes[path], packing.tensors[path] = grid.scheme, tensors
            packing.widened.extend([path] if grid is not whole else [])
        else:
            inside = [name for name, slot in model.slots.items() if slot.owner is module]
            packing.reasons.update(dict.fromkeys(inside, NO_ZEROS if grid is None else INEXACT))
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
    dtype, stored, schemes = choose_dtype(model), model.stored_dtype, packing.schemes
    dense = model.network.state_dict()
    for path in schemes:
        del dense[f"{path}.weight"]
    state = cast_state(dense, lambda tensor: stored if holds_exactly(stored, tensor) else tensor.dtype)
    for path, tensors in packing.tensors.items():
        state |= {f"{path}.{suffix}": tensor for suffix, tensor in tensors.items()}

    def describe(folder: Path) -> dict[str, Any]:
        described = describe_format(schemes, list_ignored(model, folder, schemes))
        return {"dtype": name_dtype(dtype), "quantization_config": described}

    size = write_folder(model, folder, plan, provenance, state, describe)
    owners = {id(model.network.get_submodule(path)) for path in schemes}
    packed = frozenset(name for name, slot in model.slots.items() if id(slot.owner) in owners)
    treated = packed & {*model.treats.names}
    notes = (*tell_widened(packing), *tell_vllm(model, schemes))
    return Exported(folder, COMPRESSED_TENSORS, dtype, size, count_bits(model, state), packed, treated, notes)
