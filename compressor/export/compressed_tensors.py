"""The format that transformers and vLLM read, a config group for each scheme.

Integers are packed into words of 32 bits, or lie as bytes where inputs are rounded too: so vLLM wants it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compressor.contracts import Grid, Scheme, Strategy
from compressor.errors import ConfigError

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

COMPRESSED_TENSORS = "compressed-tensors"
PACKED, BYTES, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
"""How a scheme is stored, and what a checkpoint is called in which schemes are stored in both ways."""
OLDEST = (0, 20)
"""The version of the package that this is made for and tested with."""


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
