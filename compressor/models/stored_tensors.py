"""Compares the tensors in the file headers of a checkpoint with those of the network that its config describes.

transformers drops stored tensors that a network does not have, and each family hides some of them from its report. So
the names are compared here. Extras of which no logit depends are allowed; anything else is another model.
"""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.initialization import meta_device_safe_creation_ops

from compressor.errors import ModelError
from compressor.models.checkpoint import StoredTensor, shorten_reason
from compressor.models.config_values import explain_failure

FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""The dtypes of dense weights, as safetensors names them."""
SCALE = re.compile(r"scale|zero_?point|^qzeros$|^qweight$|absmax|amax$|quant_|packed|^SCB$|^g_idx$")
"""The last part of a name that only quantized checkpoints have."""
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|h)\.(\d+)\.")
NEXT_TOKENS = re.compile(r"nextn|mtp")
"""Names of layers that predict further tokens, in a config and in the names of tensors."""
OTHER_INPUTS = re.compile(r"(^|[._])(vision|visual|image|audio|speech|multi_modal|mm)([._]|$)|^(talker|\w+2wav)\.")
"""Modules for inputs or outputs other than text."""
COMPUTED = re.compile(r"(^|\.)(original_)?inv_freq$|\.(cos|sin)_cached$|(^|\.)position_ids$|\.masked_bias$")
"""Tensors that older versions of transformers saved, and that a network computes from its config."""
NEVER_MORE = 2
"""A network has at most this many times the weights in its files; with more, it would take memory for nothing."""


@dataclass(frozen=True)
class UnusedTensors:
    """Stored tensors that the network does not have: `extras` of other parts, and those that it `computes` itself."""

    extras: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()

    @property
    def predict_next(self) -> bool:
        """Whether layers that predict further tokens are among them."""
        return any(LAYER.search(name) or NEXT_TOKENS.search(name) for name in self.extras)

    def describe(self) -> list[str]:
        """Notes for the user."""
        notes = []
        if self.extras:
            notes.append(
                f"{len(self.extras)} tensors of the checkpoint do not belong to the network that is scored, "
                f"`{self.extras[0]}` first: layers that predict further tokens, or parts for other inputs than text. "
                "They are neither counted nor saved."
            )
        if self.computed:
            notes.append(
                f"{len(self.computed)} tensors of the checkpoint are computed from the config and not read, "
                f"`{self.computed[0]}` first."
            )
        return notes


def check_counts(folder: Path, config: PreTrainedConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Raises ModelError for more layers or experts than the files can hold, before a network is built.

    Every layer has a tensor of its own. Experts have one each, or they are a dimension of a tensor.
    """
    text = config.get_text_config()
    sides = max((side for tensor in stored.values() for side in tensor.shape), default=0)
    limits = {"num_hidden_layers": len(stored)}
    limits |= {name: max(len(stored), sides) for name in vars(text) if "experts" in name}
    for name, limit in limits.items():
        value = getattr(text, name, None)
        if isinstance(value, int) and value > limit:
            raise ModelError(
                f"`{name}` of `{folder / 'config.json'}` must be at most {limit}, because the weight files have "
                f"{len(stored)} tensors, got {value}; correct it"
            )


def build_blank(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """The network without memory for its weights, on the meta device; raises ModelError for an invalid config."""
    try:
        with torch.device("meta"), meta_device_safe_creation_ops():
            return AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # remote code raises what it likes
        path = folder / "config.json"
        raise explain_failure(json.loads(path.read_text(encoding="utf-8")), error, path) or ModelError(
            f"no network can be built from `{path}` ({shorten_reason(error)}); its values must fit one another, "
            "correct them"
        ) from error


def refuse_folder(folder: Path, error: Exception) -> ModelError:
    """The error for a checkpoint that transformers cannot load."""
    return ModelError(
        f"transformers cannot load `{folder}` ({shorten_reason(error)}); its tensors must be those of its config.json"
    )


def match_tensors(folder: Path, network: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> UnusedTensors:
    """The stored tensors that the network does not have.

    Raises ModelError if a logit may depend on one of these, if weights are not stored in floating point or have another
    shape than in the network, and for a network that is much larger than its files.
    """
    targets = find_targets(network, stored)
    unused = _sort_unused(folder, network.config, {name: stored[name] for name in stored if name not in targets})
    state = network.state_dict()
    for name, (target, is_converted) in targets.items():
        tensor, wanted = stored[name], state[target]
        if wanted.is_floating_point() and tensor.dtype not in FLOATS:
            raise ModelError(
                f"`{name}` of `{folder}` must be stored in floating point, got {tensor.dtype}; give the original, "
                "dense checkpoint, or export the model again"
            )
        if not is_converted and tensor.shape != wanted.shape:
            raise refuse_shape(folder, name, tensor.shape, wanted.shape)
    _check_size(folder, network, stored)
    return unused


def refuse_shape(folder: Path, name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> ModelError:
    """The error for a tensor that is stored with another shape than the network's."""
    return ModelError(
        f"`{name}` of `{folder}` must have the shape {list(wanted)} by its config, got {list(stored)}; "
        "correct config.json or the weights"
    )


def find_targets(network: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> dict[str, tuple[str, bool]]:
    """Name on disk -> name in the network, and whether transformers converts the tensor; only of those it takes.

    The rules are those of transformers' loader.
    """
    state, prefix = network.state_dict(), network.base_model_prefix
    rules = get_model_conversion_mapping(network)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    answer: dict[str, tuple[str, bool]] = {}
    for name in stored:
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if target in state:
            answer[name] = (target, pattern is not None)
    return answer


def _sort_unused(folder: Path, config: PreTrainedConfig, unused: Mapping[str, StoredTensor]) -> UnusedTensors:
    """Sort them into extras and computed ones; raises ModelError for all others."""
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0)
    announced = sum(value for name, value in vars(text).items() if NEXT_TOKENS.search(name) and type(value) is int)
    extras, computed, others = [], [], []
    for name, tensor in unused.items():
        layer = LAYER.search(name)
        is_next = layer is not None and layers <= int(layer[1]) < layers + announced
        is_mask = name.endswith("bias") and len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1)
        if COMPUTED.search(name) or is_mask:
            computed.append(name)
        elif is_next or NEXT_TOKENS.search(name) or OTHER_INPUTS.search(name):
            extras.append(name)
        else:
            others.append(name)
    if scales := [name for name in others if SCALE.search(name.rpartition(".")[2])]:
        raise ModelError(
            f"`{folder}` is quantized: it has {len(scales)} tensors like `{scales[0]}` beside its weights, which "
            "would be read without them; the base must be a dense checkpoint, give the original one"
        )
    if others:
        beyond = [int(found[1]) for name in others if (found := LAYER.search(name))]
        count = f", which says `num_hidden_layers` {layers}" if any(layer >= layers for layer in beyond) else ""
        names = ", ".join(f"`{name}`" for name in others[:3])
        raise ModelError(
            f"`{folder}` stores {len(others)} tensors that the network of its config.json{count} does not have: "
            f"{names}{', …' if others[3:] else ''}; correct config.json, or remove them"
        )
    return UnusedTensors(tuple(extras), tuple(computed))


def _check_size(folder: Path, network: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
    wanted = sum(parameter.numel() for parameter in network.parameters())
    found = sum(tensor.weights for tensor in stored.values())
    if wanted > NEVER_MORE * found:
        raise ModelError(
            f"the config of `{folder}` describes {wanted} weights, and its files hold {found}; complete the "
            "checkpoint or correct config.json"
        )
