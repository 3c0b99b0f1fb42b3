"""`compressor.load`: integers stay packed in memory, and each module computes its weight when it is called."""

import functools
import os
import warnings
from pathlib import Path
from typing import NoReturn

import torch
from transformers import PreTrainedModel

from compressor.arguments import read_path, require_switch
from compressor.errors import ConfigError, ModelError, OutputError, suggest
from compressor.export.loading.config_reader import read_schemes
from compressor.export.loading.hf_quantizer import check_packed, describe_skeleton, pack
from compressor.export.loading.zero_linear import skip_zeros
from compressor.models import checkpoint, loading
from compressor.models.stored_tensors import build_blank, check_counts, match_tensors

EXACT, REMOVED = "exact", "torch"
"""Accepted values of `kernels`. The removed one gives a warning and loads the exact model."""


def load(
    folder: str | os.PathLike[str],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    kernels: str = EXACT,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model that `compressor run` has saved in `folder` (`…/model`), in evaluation mode and frozen.

    Packed modules hold the integers as they are on disk; no dense weight is created during loading. The package
    compressed-tensors is not needed. `device` is `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`. `dtype` is
    `auto` (that of config.json), `float32`, `bfloat16` or `float16`. Choose it here and not by `to`, which would not
    round the weights as a model in that dtype does.

    Each module computes its weight at every call. A linear module whose weight is zero everywhere makes no product; it
    returns its bias. The outputs have the same bits as with transformers, which are the bits that were scored.
    `kernels` has one value, `"exact"`. `"torch"` chose torch's integer kernels in earlier versions; it now gives a
    warning and loads the exact model.

    `save_pretrained` cannot save a packed model; copy the folder. Raises ConfigError for an unknown argument, and
    ModelError for a folder that is not a valid model or is packed in another way.
    """
    if kernels == REMOVED:
        # Not a DeprecationWarning, because Python shows those only in `__main__`, and outputs and speed change.
        message = f'`kernels="{REMOVED}"` was removed from `compressor.load`; the exact model is loaded, omit `kernels`'
        warnings.warn(message, UserWarning, stacklevel=2)
    elif kernels != EXACT:
        raise ConfigError(f"unknown `kernels` `{kernels}`; {suggest(str(kernels), [EXACT])}")
    path = find_model(read_path("folder", folder))
    require_switch("trust_remote_code", trust_remote_code)
    place, chosen = loading.choose_device(device, "device"), loading.choose_dtype(dtype, "dtype", "auto")
    with loading.quiet_loading(place):
        config = checkpoint.read_config(path, trust_remote_code)
        tensors = checkpoint.read_tensors(checkpoint.find_weight_files(path))
        check_counts(path, config, tensors)
        described = vars(config).pop("quantization_config", None)
        schemes = {} if described is None else read_schemes(path, described)
        # Compared with the files before it takes memory.
        blank = build_blank(path, config, torch.get_default_dtype(), trust_remote_code)
        pack(blank, schemes)
        match_tensors(path, blank, tensors)
        if described is not None:
            config.quantization_config = describe_skeleton(schemes, described)
        network = loading.load_network(path, config, chosen, trust_remote_code)
        check_packed(network, path)
        network.to(place).eval().requires_grad_(False)
        skip_zeros(network)
    if described is not None:
        network.save_pretrained = functools.partial(refuse_saving, path)
    return network


def find_model(folder: Path) -> Path:
    """The folder of the model; raises ModelError if it does not exist or is the folder of a whole run."""
    path = folder.expanduser()
    if not path.is_dir():
        raise ModelError(f"no such folder `{folder}`; give one that holds a model, such as `model` of a run's folder")
    if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
        raise ModelError(f"`{folder}` is the folder of a run; its model is `{path / 'model'}`, give that")
    return path


def refuse_saving(folder: Path, *arguments: object, **options: object) -> NoReturn:
    """Replaces `save_pretrained`."""
    raise OutputError(f"a model that is loaded packed cannot be saved again; copy its folder `{folder}` instead")
