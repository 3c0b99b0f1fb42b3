"""The format of the package compressed-tensors, which transformers and vLLM read.

Integers are packed into 32-bit words, or stored as bytes if inputs are rounded too, as vLLM expects. config.json has a
config group for each scheme. A module is packed only if that changes no value; all others are saved dense.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from compressor.contracts import Plan, QuantizedMatrix, Scheme, Strategy
from compressor.export.folder import (
    Exported,
    cast_state,
    choose_saved_dtype,
    choose_stored,
    count_bits,
    name_dtype,
    note_copied,
    write_folder,
)
from compressor.export.packable_modules import find_packable, list_linears
from compressor.export.vllm_checks import describe_vllm_limits
from compressor.export_formats import COMPRESSED_TENSORS
from compressor.models import Model

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

PACKED, BYTES, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
"""The two storage formats of a scheme, and the format name of a checkpoint that uses both."""
INEXACT = "the reader of the format would round its values differently"
NO_ZEROS = "transformers cannot load packed zero points here, and 8-bit integers cannot be stored without them"


def describe_scheme(scheme: Scheme, targets: Sequence[str]) -> QuantizationScheme:
    """The scheme as an object of the package, for modules with these names."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    inputs = None
    if scheme.input_rounding is not None:
        bits = scheme.input_rounding.bits
        inputs = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="token", dynamic=True)
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
    return PACKED if scheme.input_rounding is None else BYTES


def pack(matrix: QuantizedMatrix) -> dict[str, Tensor]:
    """The tensors of one module, by suffix.

    `weight_packed` int32 `[out, ⌈in · b / 32⌉]`: q + 2^(b−1) of each row, lowest bit first, without gaps;
    `weight_scale`: s, `[1]` for the whole matrix; `weight_zero_point` int32 `[⌈out · b / 32⌉, group]`: z packed along
    `out`; `weight_shape` `[out, in]`. If inputs are rounded too: only `weight` int8 `[out, in]` and `weight_scale`.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    scales = matrix.scales.flatten() if matrix.scheme.strategy is Strategy.tensor else matrix.scales
    if matrix.input_rounding is not None:
        return {"weight": matrix.integers.contiguous(), "weight_scale": scales.contiguous()}
    tensors = {
        "weight_packed": pack_to_int32(matrix.integers, matrix.integer_bits),
        "weight_scale": scales.contiguous(),
        "weight_shape": torch.tensor(matrix.integers.shape),
    }
    if matrix.zeros is not None:
        tensors["weight_zero_point"] = pack_to_int32(matrix.zeros, matrix.integer_bits, packed_dim=0)
    return tensors


def unpack_integers(words: Tensor, bits: int, count: int) -> Tensor:
    """int8 `[row, count]`: the first `count` q of each row of int32 `words` `[row, word]`.

    A row is a string of bits, lowest first, that holds q + 2^(b−1) in b bits each, without gaps.
    """
    stream = words.flatten().view(torch.uint8).view(len(words), -1)  # bytes, lowest first
    if bits == 8:
        return (stream ^ 128).view(torch.int8)[:, :count]
    if bits == 4:
        pairs = stream.to(torch.int16)
        numbers = (pairs | pairs << 4) & 0x0F0F
        return (numbers.view(torch.int8) - 8)[:, :count]
    begins = torch.arange(count, device=words.device) * bits
    first = begins >> 3
    second = (first + 1).clamp(max=stream.shape[1] - 1)  # bits beyond the end are masked
    pairs = stream[:, first].to(torch.int16) | stream[:, second].to(torch.int16) << 8
    numbers = pairs >> (begins & 7).to(torch.int16) & (1 << bits) - 1
    return (numbers - (1 << (bits - 1))).to(torch.int8)


def read_back(tensors: Mapping[str, Tensor], scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """`[out, in]`: the weight that the package decodes from the tensors in a model of this dtype."""
    from compressed_tensors.compressors import BaseCompressor

    reader = BaseCompressor.get_value_from_registry(name_storage(scheme))
    loaded = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    weight: Tensor = reader.decompress(loaded, describe_scheme(scheme, []))["weight"]
    return weight


@functools.cache
def reads_zeros() -> bool:
    """Whether transformers can load packed zero points with this package. Version 0.20.0 expects them unpacked."""
    from compressed_tensors.compressors import BaseCompressor

    scheme = describe_scheme(Scheme(4, Strategy.channel, 0, False), [])
    empty = {"weight": torch.empty(32, 32), "weight_scale": torch.empty(32, 1)}
    empty["weight_zero_point"] = torch.empty(32, 1, dtype=torch.int8)
    prepared = BaseCompressor.get_value_from_registry(PACKED).compress(
        {name: tensor.to("meta") for name, tensor in empty.items()}, scheme
    )
    return bool(prepared["weight_zero_point"].shape == (4, 1))


def describe_format(schemes: Mapping[str, Scheme], ignore: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of config.json: a config group for each of the `schemes` of modules, the rest `ignore`d."""
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
    described: dict[str, Any] = config.model_dump(mode="json")
    return described | {"version": importlib.metadata.version(COMPRESSED_TENSORS)}


@dataclass(frozen=True)
class PackedModule:
    """The stored weight of a module, with `tensors` by suffix.

    `is_widened` is true if its integers have one more bit in place of zero points.
    """

    scheme: Scheme
    tensors: Mapping[str, Tensor]
    is_widened: bool


def pack_weight(matrix: QuantizedMatrix, scored: Tensor, dtype: torch.dtype) -> PackedModule | str:
    """The packed `matrix`, if it decodes to `scored` `[out, in]` bit for bit in a model of this dtype.

    Otherwise the reason why it cannot be packed.
    """
    readable = matrix if reads_zeros() else matrix.without_zeros()
    if readable is None:
        return NO_ZEROS
    tensors = pack(readable)
    if not torch.equal(read_back(tensors, readable.scheme, dtype), scored.to("cpu", dtype)):
        return INEXACT
    return PackedModule(readable.scheme, tensors, readable is not matrix)


def pack_modules(
    model: Model, quantized: Mapping[str, QuantizedMatrix | None]
) -> tuple[dict[str, PackedModule], dict[str, str]]:
    """Module path -> its packed weight, and component -> why it stays dense; `quantized` is as in `find_packable`."""
    matrices, reasons = find_packable(model, quantized)
    modules, dtype = dict[str, PackedModule](), choose_saved_dtype(model)
    for path, matrix in matrices.items():
        module = model.network.get_submodule(path)
        packed = pack_weight(matrix, module.weight.detach(), dtype)
        if isinstance(packed, PackedModule):
            modules[path] = packed
        else:
            inside = [name for name, weight_view in model.weight_views.items() if weight_view.owner is module]
            reasons.update(dict.fromkeys(inside, packed))
    return modules, reasons


def list_ignored(model: Model, folder: Path, packed: Mapping[str, Scheme]) -> list[str]:
    """Names of everything that a reader could take for a linear module and that is not packed.

    These are names of modules and of tensors on disk, because in transformers some modules have other names than in the
    checkpoint.
    """
    names = dict.fromkeys(path for path in list_linears(model.network) if path not in packed)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            stored = {name: tensors.get_slice(name) for name in tensors.keys()}
            matrices = [name for name, one in stored.items() if len(one.get_shape()) > 1 and one.get_dtype() != "I8"]
        names |= dict.fromkeys(name.removesuffix(".weight") for name in matrices if name.endswith(".weight"))
    return list(names)


def save_compressed(
    model: Model, folder: Path, plan: Plan, provenance: Mapping[str, Any], modules: Mapping[str, PackedModule]
) -> Exported:
    """Like `save_dense`, with `modules` packed; there is at least one.

    Every other tensor keeps its scored values; it is in the checkpoint's dtype if that is exact.
    """
    dtype, schemes = choose_saved_dtype(model), {path: module.scheme for path, module in modules.items()}
    dense = model.network.state_dict()
    for path in modules:
        del dense[f"{path}.weight"]
    state = cast_state(dense, lambda tensor: choose_stored(model, tensor))
    for path, module in modules.items():
        state |= {f"{path}.{suffix}": tensor for suffix, tensor in module.tensors.items()}

    def describe(folder: Path) -> dict[str, Any]:
        described = describe_format(schemes, list_ignored(model, folder, schemes))
        return {"dtype": name_dtype(dtype), "quantization_config": described}

    size = write_folder(model, folder, plan, provenance, state, describe)
    owners = {id(model.network.get_submodule(path)) for path in modules}
    packed = frozenset(name for name, weight_view in model.weight_views.items() if id(weight_view.owner) in owners)
    treated = packed & {*model.input_transforms.names}
    notes = (*describe_vllm_limits(model, schemes), *note_copied(model, folder))
    if widened := [path for path, module in modules.items() if module.is_widened]:
        note = (
            f"{len(widened)} modules store one more bit for each weight in place of zero points, which transformers "
            f"does not load with this version of {COMPRESSED_TENSORS}; `{widened[0]}` is the first."
        )
        notes = (note, *notes)
    return Exported(folder, COMPRESSED_TENSORS, dtype, size, count_bits(model, state), packed, treated, notes)
