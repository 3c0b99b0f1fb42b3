"""A quantizer for transformers that keeps tensors packed: it replaces linear modules before the weights are loaded.

No dense weight of a packed module is ever in memory. The package compressed-tensors, which transformers normally uses
for such folders, is not needed.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from compressor.contracts import Scheme, Strategy
from compressor.errors import ModelError
from compressor.export.loading.packed_linear import ByteLinear, PackedLinear, StoredLinear

METHOD = "compressor-packed"
"""The name of this quantizer in transformers; no config.json contains it."""


class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc] # transformers has no types
    """The `schemes` of modules by path. `described` is the original entry of config.json, which `to_dict` returns."""

    def __init__(self, quant_method: str, schemes: Mapping[str, Scheme], described: Mapping[str, Any]) -> None:
        self.quant_method, self.schemes, self.described = quant_method, schemes, described

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(dict(self.described))


class PackedQuantizer(HfQuantizer):  # type: ignore[misc] # transformers has no types
    """Replaces linear modules by packed ones before weights are loaded."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **options: object) -> None:
        pack(model, self.quantization_config.schemes)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **options: object) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, ByteLinear):
                module.is_loaded = True
        return model

    def get_new_dtype(self, converter: object, param: object, dtype: torch.dtype | None) -> torch.dtype | None:
        """Converts to floats only, so that `check_packed` finds floats in place of integers.

        Integers in place of floats are converted too, and `match_tensors` finds them in the headers of the files.
        """
        return dtype if dtype is not None and dtype.is_floating_point else None

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def pack(network: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Replace linear modules by empty packed ones on the same device, by path; raises ModelError if one is none."""
    for path, scheme in schemes.items():
        network.set_submodule(path, replace_linear(network, path, scheme))


def replace_linear(network: nn.Module, path: str, scheme: Scheme) -> StoredLinear:
    """An empty packed module for the linear module at `path`; raises ModelError if there is none."""
    linear = dict(network.named_modules()).get(path)
    if type(linear) is not nn.Linear:
        found = "nothing" if linear is None else f"a {type(linear).__name__}"
        raise ModelError(
            f"`quantization_config` names `{path}`, but {type(network).__name__} has {found} there; targets must be "
            "paths of linear modules, as an export writes them"
        )
    if scheme.strategy is Strategy.group and linear.in_features % scheme.group:
        raise ModelError(
            f"`quantization_config` gives `{path}` groups of {scheme.group}, which must divide its width "
            f"{linear.in_features}; correct config.json"
        )
    kind = PackedLinear if scheme.input_rounding is None else ByteLinear
    with linear.weight.device:
        return kind(linear.in_features, linear.out_features, linear.bias, scheme)


@functools.cache
def register() -> None:
    """Register the quantizer in transformers, once."""
    register_quantization_config(METHOD)(PackedConfig)
    register_quantizer(METHOD)(PackedQuantizer)


def describe_skeleton(schemes: Mapping[str, Scheme], described: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` with which transformers loads modules packed."""
    register()
    return {"quant_method": METHOD, "schemes": dict(schemes), "described": dict(described)}


def check_packed(network: PreTrainedModel, folder: object) -> None:
    """Raises ModelError for packed tensors with a wrong shape or dtype."""
    for path, module in network.named_modules():
        if not isinstance(module, StoredLinear):
            continue
        shape = [module.out_features, module.in_features]
        for name, buffer in module.named_buffers():
            wanted = module.stored.get(name, buffer.dtype)
            if buffer.dtype != wanted:
                raise ModelError(
                    f"`{path}.{name}` of `{folder}` must be {wanted}, got {buffer.dtype}; export the model again"
                )
        if isinstance(module, PackedLinear) and module.weight_shape.tolist() != shape:
            raise ModelError(
                f"`{path}.weight_shape` of `{folder}` must be {shape} by its config, got "
                f"{module.weight_shape.tolist()}; correct config.json or the weights"
            )
