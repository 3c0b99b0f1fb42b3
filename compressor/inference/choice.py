"""Which modules run by kernels: those for which there is one that says the same on this machine."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from compressor.export.loading.packed_linear import StoredLinear
from compressor.inference.integers import IntegerLinear
from compressor.inference.kernels import Int4Linear, Int8Linear, KernelLinear

log = logging.getLogger(__name__)

KERNELS: tuple[type[KernelLinear], ...] = (Int8Linear, Int4Linear, IntegerLinear)


def choose_kernel(module: StoredLinear) -> KernelLinear | None:
    """The module by a kernel that is made for it and that says the same on this machine; None if there is none."""
    dtype, device = module.weight_scale.dtype, module.weight_scale.device
    kind = next((kind for kind in KERNELS if dtype in kind.dtypes and kind.serves(module)), None)
    if kind is None or device.type != "cpu":
        return None
    made, weight = kind(module), module.weight
    return made if torch.equal(made.weight, weight) and made.agrees(weight) else None


def use_kernels(network: PreTrainedModel) -> None:
    """Put modules that run by a kernel in the places of packed ones, one after the other, where there is a kernel."""
    packed = {path: module for path, module in network.named_modules() if isinstance(module, StoredLinear)}
    chosen = 0
    while packed:  # so that a module goes as soon as the next one is there
        path, module = packed.popitem()
        kernel = choose_kernel(module)
        if kernel is not None:
            network.set_submodule(path, kernel.eval())
            chosen += 1
    log.info("%d modules run by kernels of torch", chosen)
