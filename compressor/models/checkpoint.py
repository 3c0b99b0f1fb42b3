"""A checkpoint on disk: find its folder, check it before anything is loaded, read what its files store."""

import hashlib
import inspect
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from compressor.errors import ModelError
from compressor.model_paths import find_local_folder
from compressor.settings import ModelSettings

HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
HUB_IGNORED = ("*/*", "consolidated*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: its dtype as safetensors names it (`BF16`), the bits of one weight, the number of weights."""

    dtype: str
    bits: int
    weights: int


def find_folder(settings: ModelSettings, embedded: Path) -> Path:
    """The local folder of the checkpoint: `embedded` if no path is set, the folder that is given, or a download."""
    if settings.path is None:
        if not embedded.is_dir():
            raise ModelError("the embedded tiny model is not installed; set `model.path` to a folder or a hub id")
        return embedded
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
    values = _read_json(folder / "config.json", "choose a folder in the transformers format")
    model_type = values.get("model_type")
    remote = "AutoConfig" in values.get("auto_map", {})
    if remote and model_type not in CONFIG_MAPPING and not trust_remote_code:
        raise ModelError(
            f"`{folder}` brings its own code for `{model_type}`, which is not run unasked; "
            "read it and set `model.trust_remote_code=true`, or `trust_remote_code=True` of `compressor.load`"
        )
    if not remote and model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"`model_type` in `{folder / 'config.json'}` must be one that transformers knows, got {model_type!r}; "
            "correct it or upgrade transformers"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # config classes, also those of remote code, raise what they like
        raise ModelError(
            f"`{folder / 'config.json'}` is no valid config of `{model_type}` ({shorten_reason(error)}); mend it"
        ) from error
    _check_decoder_only(config, folder, remote and trust_remote_code)
    return config


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
    if getattr(config, "quantization_config", None) is not None:
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
    shards = _read_json(folder / INDEX, "download it again").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"`{folder / INDEX}` must map tensors to files under `weight_map`; download it again")
    files = sorted({folder / str(name) for name in shards.values()})
    if missing := [path.name for path in files if not path.is_file()]:
        raise ModelError(
            f"`{folder}` lacks {len(missing)} of {len(files)} weight files that its index names, "
            f"`{missing[0]}` first; download them again"
        )
    return files


def read_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor in the headers of safetensors files, by its name on disk."""
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():
                    stored = opened.get_slice(name)
                    dtype = str(stored.get_dtype())
                    bits = int((re.findall(r"\d+", dtype) or ["8"])[0])
                    tensors[name] = StoredTensor(dtype, bits, math.prod(stored.get_shape()))
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


def find_code(folder: Path) -> list[Path]:
    """The Python files in the folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*.py") if path.is_file())


def find_running(network: type) -> Path | None:
    """The folder of the code that a network runs, if that came with a checkpoint; None for code of transformers."""
    if not network.__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
        return None
    return Path(inspect.getfile(network)).parent


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


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"`{path.parent}` has no `{path.name}`; {fix}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` must be JSON ({shorten_reason(error)}); {fix}") from error
    if not isinstance(values, dict):
        raise ModelError(f"`{path}` must hold a JSON object, got {type(values).__name__}; {fix}")
    return values
