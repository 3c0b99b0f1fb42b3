"""A checkpoint on disk: find its folder, check it before anything is loaded, read what its files store."""

import hashlib
import inspect
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from compressor.errors import ModelError
from compressor.model_paths import EMBEDDED, find_local_folder
from compressor.models.config_values import check_values
from compressor.settings import ModelSettings

COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""Files that belong to a model besides weights and code: of tokenizers, processors, chat templates, and licences."""
HUB_FILES = ("*.safetensors", *COMPANIONS)
HUB_IGNORED = ("*/*", "consolidated*")
TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken")
"""Files of tokenizers."""
OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Entries of a config that decide what a forward pass returns, with the values that every pass here needs. They change
no logits. transformers refuses to save a config with others."""
TEMPLATES = "additional_chat_templates"
"""The folder of a tokenizer's further chat templates."""
REPLACED = ("config.json", "compression.json", "hf_quant_config.json", "quantize_config.json")
"""Files that say how weights are stored, which an export does not take from its base."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
LONGEST = 255
"""The longest name of a file, in bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: its dtype as safetensors names it (`BF16`), the bits of one weight, weights, and shape."""

    dtype: str
    bits: int
    weights: int
    shape: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        return self.weights * self.bits // 8


def find_folder(settings: ModelSettings) -> Path:
    """The local folder of the checkpoint: that of the embedded model without a path, the given one, or a download."""
    if settings.path is None:
        if not EMBEDDED.is_dir():
            raise ModelError("the embedded tiny model is not installed; set `model.path` to a folder or a hub id")
        return EMBEDDED
    return find_local_folder(settings.path) or _download_folder(settings)


def _download_folder(settings: ModelSettings) -> Path:
    patterns = [*HUB_FILES, "*.py"] if settings.trust_remote_code else [*HUB_FILES]
    try:
        folder = huggingface_hub.snapshot_download(
            settings.path, revision=settings.revision, allow_patterns=patterns, ignore_patterns=[*HUB_IGNORED]
        )
    except hub_errors.GatedRepoError as error:
        fix = "it is gated: accept its licence on huggingface.co and run `hf auth login`"
        raise ModelError(f"hub model `{settings.path}` cannot be downloaded; {fix}") from error
    except hub_errors.RepositoryNotFoundError as error:
        fix = "there is neither such a folder nor such a hub model: check the spelling, or log in if it is private"
        raise ModelError(f"no model `{settings.path}`; {fix}") from error
    except hub_errors.RevisionNotFoundError as error:
        fix = "check `model.revision`"
        raise ModelError(f"hub model `{settings.path}` has no revision `{settings.revision}`; {fix}") from error
    except Exception as error:  # the hub's client raises errors of four libraries
        fix = "check the network, or download it elsewhere and give the local folder"
        reason = shorten_reason(error)
        raise ModelError(f"hub model `{settings.path}` cannot be downloaded ({reason}); {fix}") from error
    return Path(folder)


def read_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """The config of a decoder-only language model; raises ModelError if the folder holds something else."""
    _check_regular(folder)
    values = read_json(folder / "config.json", "choose a folder in the transformers format")
    read_generation(folder)  # or transformers says that the weights are wrong
    check_values(values, folder / "config.json")
    model_type = values.get("model_type")
    remote = "AutoConfig" in (values.get("auto_map") or {})
    is_known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if remote and not is_known and not trust_remote_code:
        raise ModelError(
            f"`{folder}` brings its own code for `{model_type}`, which is not run unasked; "
            "read it and set `model.trust_remote_code=true`, or `trust_remote_code=True` of `compressor.load`"
        )
    if not remote and not is_known:
        raise ModelError(
            f"`model_type` in `{folder / 'config.json'}` must be one that transformers knows, got "
            f"{shorten_reason(repr(model_type))}; correct it or upgrade transformers"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # config classes, also those of remote code, raise what they like
        wrong = None if isinstance(error, hub_errors.StrictDataclassClassValidationError) else _find_wrong(values)
        key = f"`{wrong}`, which is {shorten_reason(repr(values[wrong]))}" if wrong else "it"
        raise ModelError(
            f"`{folder / 'config.json'}` is no valid config of `{model_type}` ({shorten_reason(error)}); mend {key}"
        ) from error
    if not isinstance(config.get_text_config(), PreTrainedConfig):
        raise ModelError(f"`{folder / 'config.json'}` has a `text_config`, and a `{model_type}` has none; remove it")
    _check_decoder_only(config, folder, remote and trust_remote_code)
    for part in {id(one): one for one in (config, config.get_text_config())}.values():
        for name, value in OUTPUTS.items():
            setattr(part, name, value)
    return config


def read_generation(folder: Path) -> dict[str, Any]:
    """The settings of generation that come with a model; empty if there are none."""
    path = folder / GENERATION
    return read_json(path, "mend it, or remove it") if path.is_file() else {}


def _check_regular(folder: Path) -> None:
    """Raise ModelError for a file of the model that is a pipe or a device, which would never end."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelError(f"`{folder}` cannot be read: {error.strerror}; give a folder that can") from None
    for name in names:
        path = folder / name
        is_odd = path.exists() and not path.is_file() and not path.is_dir()
        if is_odd and any(fnmatch(name, pattern) for pattern in HUB_FILES):
            raise ModelError(f"`{path}` is no regular file but a pipe or a device; remove it, or write it anew")


def _find_wrong(values: Mapping[str, Any]) -> str | None:
    """The one key without which a config would be valid; None if there is no such key, or more than one."""
    if values.get("model_type") not in CONFIG_MAPPING:
        return None  # its class is remote code

    def is_valid(without: str) -> bool:
        try:
            CONFIG_MAPPING[values["model_type"]].from_dict({key: values[key] for key in values if key != without})
            return True
        except Exception:  # as above
            return False

    found = [key for key in values if is_valid(key)]
    return found[0] if len(found) == 1 else None


def _check_decoder_only(config: PreTrainedConfig, folder: Path, remote: bool) -> None:
    rule = "only decoder-only (causal) language models can be compressed; choose another checkpoint"
    if config.is_encoder_decoder:
        raise ModelError(f"`{folder}` holds an encoder-decoder model ({config.model_type}); {rule}")
    names = set(config.architectures or ())
    causal = not names.isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if not names:
        causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not causal and not (remote and "AutoModelForCausalLM" in getattr(config, "auto_map", {})):
        got = ", ".join(sorted(names)) or config.model_type
        raise ModelError(f"`{folder}` holds {got}, which is not a causal language model; {rule}")


def check_dense(config: PreTrainedConfig, folder: Path) -> None:
    """Raises ModelError for a checkpoint that is already quantized."""
    parts = (config, config.get_text_config())
    if any(getattr(part, "quantization_config", None) is not None for part in parts):
        raise ModelError(f"`{folder}` is quantized already; the base must be a dense checkpoint, give the original one")


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, sorted by name."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _find_shards(folder)
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise ModelError(
            f"`{folder}` has no safetensors, only `{pickles[0]}`, which may run code when read; "
            "convert it with `save_pretrained` to safetensors"
        )
    raise ModelError(f"`{folder}` holds no weights; it must have `{WEIGHTS}` or `{INDEX}`, download the model again")


def _find_shards(folder: Path) -> list[Path]:
    shards = read_json(folder / INDEX, "download it again").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"`{folder / INDEX}` must map tensors to files under `weight_map`; download it again")
    for name in shards.values():
        if not isinstance(name, str) or len(name.encode(errors="replace")) > LONGEST or Path(name).name != name:
            raise ModelError(
                f"`{folder / INDEX}` must name files of its folder under `weight_map`, got "
                f"{shorten_reason(repr(name))}; download it again"
            )
    files = sorted({folder / name for name in shards.values()})
    if missing := [path.name for path in files if not path.is_file()]:
        raise ModelError(
            f"`{folder}` lacks {len(missing)} of {len(files)} weight files that its index names, "
            f"`{missing[0]}` first; download them again"
        )
    return files


def read_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor in the headers of safetensors files, by its name on disk; no weight is read.

    Raises ModelError for a file that cannot be read, and for a tensor in two files, because readers differ in which one
    they take.
    """
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():
                    if name in places:
                        raise ModelError(
                            f"`{name}` is stored twice, in `{places[name]}` and in `{path.name}`; remove one of them"
                        )
                    places[name] = path
                    stored = opened.get_slice(name)
                    dtype, shape = str(stored.get_dtype()), tuple(stored.get_shape())
                    bits = int((re.findall(r"\d+", dtype) or ["8"])[0])
                    tensors[name] = StoredTensor(dtype, bits, math.prod(shape), shape)
        except (SafetensorError, OSError) as error:
            reason = shorten_reason(error)
            raise ModelError(f"`{path}` is corrupt or truncated ({reason}); download it again") from error
    if not tensors:
        raise ModelError(f"the weight files {[path.name for path in files]} hold no tensors; download the model again")
    return tensors


def find_common_tensor(tensors: Iterable[StoredTensor]) -> StoredTensor:
    """The dtype and bits of most weights, and how many weights have them."""
    counts: Counter[tuple[str, int]] = Counter()
    for tensor in tensors:
        counts[tensor.dtype, tensor.bits] += tensor.weights
    (dtype, bits), weights = counts.most_common(1)[0]
    return StoredTensor(dtype, bits, weights)


def find_companions(folder: Path) -> list[Path]:
    """The files beside the weights that belong to the model, sorted: not weights, their index, adapters, or code."""
    found = {path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    found |= {path for path in folder.glob(f"{TEMPLATES}/*.jinja") if path.is_file()}
    others = ("adapter_", "optimizer", "trainer_state", "training_")
    kept = [path for path in found if not path.name.endswith(".index.json") and not path.name.startswith(others)]
    return sorted(path for path in kept if path.name not in REPLACED)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file of a model's folder is a link to somewhere else, which is no part of the model.

    The hub's cache keeps the files of a snapshot in `blobs` beside all snapshots.
    """
    place, real = folder.resolve(), path.resolve()
    return not any(real.is_relative_to(part) for part in (place, place.parent.parent / "blobs"))


def find_tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer, sorted."""
    return sorted(path for pattern in TOKENIZER for path in folder.glob(pattern) if path.is_file())


def find_code(folder: Path) -> list[Path]:
    """The Python files in the folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*.py") if path.is_file())


def find_running(network: type) -> Path | None:
    """The folder of the code that a network runs, if that came with a checkpoint; None for code of transformers."""
    if not network.__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
        return None
    return Path(inspect.getfile(network)).parent


def find_hashed(folder: Path, trusts_code: bool) -> list[Path]:
    """The files on which a network in `folder` depends: config.json, the weight files, and code that is trusted."""
    return [folder / "config.json", *find_weight_files(folder), *(find_code(folder) if trusts_code else ())]


def hash_content(folder: Path, files: Iterable[Path]) -> str:
    """sha256 of the contents of the files and of their names relative to `folder`."""
    digest = hashlib.sha256()
    for path in files:
        name = Path(os.path.relpath(path, folder)).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def shorten_reason(reason: object) -> str:
    """A text, or the message of an error from another library, on one line of at most 160 characters."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= 160 else text[:159] + "…"


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """The JSON object in a file of a model; raises ModelError, which ends with the `fix`, for anything else."""
    if not path.is_file():
        raise ModelError(f"`{path.parent}` has no `{path.name}`; {fix}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"`{path}` must be JSON ({shorten_reason(error)}); {fix}") from error
    if not isinstance(values, dict):
        raise ModelError(f"`{path}` must hold a JSON object, got {type(values).__name__}; {fix}")
    return values
