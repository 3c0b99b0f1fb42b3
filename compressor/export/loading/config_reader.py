"""Reads the schemes of packed modules from config.json. Other formats give an error of one line."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.contracts import Scheme, Strategy, TokenRounding
from compressor.errors import ModelError
from compressor.export.compressed_tensors import BYTES, PACKED
from compressor.export_formats import COMPRESSED_TENSORS
from compressor.models.checkpoint import shorten_reason

SUPPORTED = (
    f"only dense folders and `{COMPRESSED_TENSORS}` as an export writes it can be loaded: `{PACKED}`, or `{BYTES}` "
    "with 8-bit inputs by token"
)
UNREAD = ("kv_cache_scheme", "sparsity_config", "moe_sparsity_config", "transform_config")
"""Entries of `quantization_config` that change the computation, and that no export contains."""
TOKEN = {
    **{"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
    **dict.fromkeys(["group_size", "block_structure", "actorder", "scale_dtype"]),
}
"""The arguments of inputs that `TokenRounding` rounds."""


def read_schemes(folder: Path, described: object) -> dict[str, Scheme]:
    """Module path -> scheme, from the `quantization_config` of `folder`; raises ModelError if it is not supported."""
    if not isinstance(described, Mapping):
        raise refuse(folder, "is", described)
    if described.get("quant_method") != COMPRESSED_TENSORS:
        raise refuse(folder, "has the `quant_method`", described.get("quant_method"))
    for name in UNREAD:
        if described.get(name):
            raise refuse(folder, f"has a `{name}`", described[name])
    if described.get("quantization_status", "compressed") != "compressed":
        raise refuse(folder, "has the `quantization_status`", described["quantization_status"])
    groups = described.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise refuse(folder, "has the `config_groups`", groups)
    schemes: dict[str, Scheme] = {}
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise refuse(folder, f"has a group `{name}` that is", group)
        scheme = read_group(folder, f"`{name}`", {"format": described.get("format"), **group})
        targets = group.get("targets")
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets) or not targets:
            raise refuse(folder, f"has in `{name}` the `targets`", targets)
        for target in targets:  # a class or a regular expression, as others may write, is refused by `replace_linear`
            if target in schemes:
                raise refuse(folder, f"has `{target}` in two groups, the second is", name)
            schemes[target] = scheme
    return schemes


def read_group(folder: Path, name: str, group: Mapping[str, Any]) -> Scheme:
    inputs = read_inputs(folder, name, group)
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        raise refuse(folder, f"has in {name} the `weights`", weights)
    said: dict[str, Any] = defaultdict(lambda: None, weights)
    bits, symmetric, strategy = said["num_bits"], said["symmetric"], said["strategy"]
    size = said["group_size"] if strategy == Strategy.group.value else 0
    known = (
        (type(bits), type(symmetric), type(size)) == (int, bool, int)
        and bits in range(1, 9)
        and said["type"] == "int"
        and strategy in [one.value for one in Strategy]
        and (size > 0) == (strategy == Strategy.group.value)
        and (symmetric or (strategy != Strategy.tensor.value and inputs is None))
        and not (said["dynamic"] or said["actorder"])
    )
    if not known:
        raise refuse(folder, f"has in {name} the scheme", dict(weights))
    return Scheme(bits, Strategy(strategy), size, symmetric, inputs)


def read_inputs(folder: Path, name: str, group: Mapping[str, Any]) -> TokenRounding | None:
    """The rounding of inputs of one config group; None if there is none. `int-quantized` requires rounded inputs."""
    if group["format"] not in (PACKED, BYTES):
        raise refuse(folder, f"has in {name} the `format`", group["format"])
    if group.get("output_activations"):
        raise refuse(folder, f"treats in {name} the `output_activations`", group["output_activations"])
    inputs = group.get("input_activations")
    if group["format"] == PACKED and not inputs:
        return None
    said = {key: inputs.get(key) for key in TOKEN} if isinstance(inputs, Mapping) else None
    if group["format"] == PACKED or said != TOKEN:
        raise refuse(folder, f"treats in {name}, which is `{group['format']}`, the `input_activations`", inputs)
    return TokenRounding()


def refuse(folder: Path, what: str, value: object) -> ModelError:
    """The error for a `quantization_config` that is not supported."""
    return ModelError(f"`quantization_config` of `{folder}` {what} {shorten_reason(repr(value))}; {SUPPORTED}")
