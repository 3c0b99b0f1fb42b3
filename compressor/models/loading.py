"""Loads a network from a folder, without output, and checks it: complete, finite, and causal.

It also chooses the device and the dtype.
"""

import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from huggingface_hub import utils as hub_utils
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from compressor.errors import CompressorError, ConfigError, ModelError, suggest
from compressor.models.checkpoint import StoredTensor, find_common_tensor, read_json, shorten_reason
from compressor.models.forward import run_network
from compressor.models.stored_tensors import refuse_folder, refuse_shape
from compressor.settings import DType

Stored = TypeVar("Stored")
Automatic = TypeVar("Automatic")
_loading = threading.RLock()
TOKENIZER_OBJECTS: dict[str, tuple[str, ...]] = {
    "tokenizer.json": ("model",),
    "tokenizer_config.json": (),
    "special_tokens_map.json": (),
    "added_tokens.json": (),
    "vocab.json": (),
}
"""Files of a tokenizer that hold a JSON object, and the keys that it must have."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PROBE_TOKENS = 8
PROBE_SLACK = 1000.0
"""Allowed rounding difference between batches in a mixture of experts, in units of the dtype's last place."""


def choose_device(wanted: str | torch.device, option: str) -> torch.device:
    """The wanted device; raises ConfigError, with the name of the option, if it is not available."""
    available = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"`{option}` must be auto, cpu, cuda or cuda:1, got {str(wanted)!r}")
    if device.type == "cuda" and not (available and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"`{option}` is {wanted}, and torch finds no such CUDA device; use cpu or auto")
    return device


def choose_dtype(wanted: DType | str | torch.dtype, option: str, automatic: Automatic) -> torch.dtype | Automatic:
    """The wanted dtype, or `automatic` for auto; raises ConfigError, with the name of the option, for others."""
    name = wanted.value if isinstance(wanted, DType) else str(wanted).removeprefix("torch.")
    if name not in DType.__members__:
        raise ConfigError(f"unknown `{option}` `{wanted}`; {suggest(name, DType.__members__)}")
    if name == DType.auto.value:
        return automatic
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@contextmanager
def quiet_loading(device: torch.device) -> Iterator[None]:
    """Inside, transformers and the hub show no progress bars, logs or warnings, and random states are kept.

    One thread at a time is inside, because all of that, and how a network is built without memory, is of the process.
    """
    with _loading:
        yield from _load_quietly(device)


def _load_quietly(device: torch.device) -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not hub_utils.are_progress_bars_disabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with warnings.catch_warnings(), torch.random.fork_rng(devices=devices), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()
            (hub_utils.enable_progress_bars if hub_bars else hub_utils.disable_progress_bars)()


def load_network(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype | str, trust_remote_code: bool
) -> PreTrainedModel:
    """The network on the CPU; raises ModelError unless the folder has every tensor of the network, all finite.

    `dtype` "auto" takes the dtype of the config.
    """
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them
        )
    except CompressorError:
        raise
    except Exception as error:  # transformers, safetensors and remote code raise what they like
        raise refuse_folder(folder, error) from error
    check_report(folder, report)
    check_finite(folder, network)
    return network


def check_finite(folder: Path, network: PreTrainedModel) -> None:
    """Raises ModelError if a tensor holds NaN or infinity."""
    for name, tensor in network.state_dict().items():
        wide = tensor.float() if tensor.itemsize == 1 else tensor  # `isfinite` takes no floats of 8 bits
        if tensor.is_floating_point() and not bool(torch.isfinite(wide).all()):
            raise ModelError(
                f"`{name}` of `{folder}` holds NaN or infinity (as {str(tensor.dtype).partition('.')[2]}); all weights "
                "must be finite, choose another checkpoint or a wider `model.dtype`"
            )


def check_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Raises ModelError for tensors that transformers did not find, or that have another shape than the network's."""
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"`{folder}` lacks {len(missing)} tensors that its config asks for, `{missing[0]}` first; "
            "complete the checkpoint or correct config.json"
        )
    if mismatched := sorted(report["mismatched_keys"]):
        raise refuse_shape(folder, *mismatched[0])


def load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or None if it has none; raises ModelError if the tokenizer cannot be read."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        tokenizer("a")
        return tokenizer
    except Exception as error:  # tokenizers' own errors have no common class
        raise ModelError(
            f"the tokenizer in `{folder}` cannot be read ({shorten_reason(error)}); mend it or remove its files"
        ) from error


def check_tokenizer_files(folder: Path) -> None:
    """Raises ModelError for a JSON file of the tokenizer that holds no object, or lacks a part that all have."""
    for name, parts in TOKENIZER_OBJECTS.items():
        if not (folder / name).is_file():
            continue
        values = read_json(folder / name, "mend it, or download it again")
        if lacking := [part for part in parts if part not in values]:
            raise ModelError(f"`{folder / name}` lacks `{lacking[0]}`; mend it, or download it again")


def probe_network(network: PreTrainedModel) -> int:
    """The vocabulary size; raises ModelError if logits are not finite, or if later tokens change earlier logits."""
    known = network.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(PROBE_TOKENS, device=network.device)[None] * 7 % known
    changed = torch.where(torch.arange(PROBE_TOKENS, device=network.device) < PROBE_TOKENS // 2, tokens, tokens + 1)
    logits = run_network(network, tokens, PROBE_TOKENS).logits.float()
    others = run_network(network, changed % known, PROBE_TOKENS).logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            f"{type(network).__name__} gives logits that are not finite in {network.dtype}; set a wider `model.dtype`"
        )
    half = PROBE_TOKENS // 2
    slack = min(PROBE_SLACK * torch.finfo(network.dtype).eps, 0.05) * float(logits.abs().max())
    change = float((logits - others)[:, :half].abs().max())
    if change > slack:
        raise ModelError(
            f"{type(network).__name__} is not a causal (decoder-only) model: later tokens must not change earlier "
            f"logits, and change them by {change:.2g}; choose another checkpoint"
        )
    if logits.shape[-1] > known:
        raise ModelError(
            f"{type(network).__name__} predicts {logits.shape[-1]} tokens, and has embeddings for {known}; every token "
            "that it may say needs one, correct config.json or choose another checkpoint"
        )
    return int(logits.shape[-1])


def find_stored_bits(network: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Bits of one weight on disk, by parameter name.

    Where transformers renames or stacks tensors, a parameter's name may not be on disk. It then has the bits of most
    weights of the checkpoint.
    """
    common = find_common_tensor(tensors.values()).bits
    bits: dict[int, int] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        stored = find_stored(network, name, tensors)
        if stored is not None:
            bits[id(parameter)] = stored.bits
    return {name: bits.get(id(parameter), common) for name, parameter in network.named_parameters()}


def find_stored(network: PreTrainedModel, name: str, stored: Mapping[str, Stored]) -> Stored | None:
    """What is stored for a parameter: under its name, or under its name without the prefix of the body."""
    return stored.get(name, stored.get(name.removeprefix(f"{network.base_model_prefix}.")))
