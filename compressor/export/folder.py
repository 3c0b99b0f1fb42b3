"""Writes the folder of a saved model: weights (dense ones here), config, tokenizer and plan, all or nothing."""

import filecmp
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from compressor.artifacts.files import is_full_disk, replaced_folder, write_json
from compressor.artifacts.plan_file import ROWS_FILE, plan_to_json, write_rows
from compressor.artifacts.run_files import record_saved
from compressor.contracts import Plan
from compressor.errors import ModelError
from compressor.export_formats import DENSE
from compressor.models import Model
from compressor.models.checkpoint import GENERATION, find_companions, leads_out, shorten_reason
from compressor.models.loading import quiet_loading
from compressor.models.stored_tensors import NEXT_TOKENS

log = logging.getLogger(__name__)
ROWS_PATH = f"compression/{ROWS_FILE}"
"""In its own folder, because some readers take every *.safetensors beside config.json for weights."""


@dataclass(frozen=True)
class Exported:
    """A saved model: the folder or file at `path`, the `format` of treated weights, and the bytes of its weights.

    `dtype` is the dtype in config.json. `bits` are the bits per weight of each component on disk, scales counted.
    `packed` are the components that are stored as integers, `treated` those whose input transform is in the saved
    model. `notes` are sentences for the user. `is_cut`: rows and columns were cut out, so that its matrices are smaller
    than the scored ones.
    """

    path: Path
    format: str
    dtype: torch.dtype
    bytes: int
    bits: Mapping[str, float]
    packed: frozenset[str] = frozenset()
    treated: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    is_cut: bool = False

    @property
    def title(self) -> str:
        """The name of the model in a note."""
        return self.path.name if self.path.is_file() else "The saved model"


def choose_saved_dtype(model: Model) -> torch.dtype:
    """The scored dtype, or the checkpoint's dtype if that is narrower and represents every weight exactly."""
    stored = model.stored_dtype
    if stored.itemsize < model.dtype.itemsize:
        return stored if all(holds_exactly(stored, weight) for weight in model.network.parameters()) else model.dtype
    return model.dtype


def choose_stored(model: Model, tensor: Tensor) -> torch.dtype:
    """The dtype in which a dense tensor is saved: that of the checkpoint if it is exact, else that of the tensor."""
    return model.stored_dtype if holds_exactly(model.stored_dtype, tensor) else tensor.dtype


def holds_exactly(dtype: torch.dtype, values: Tensor) -> bool:
    """Whether `dtype` represents all values exactly."""
    return torch.equal(values.to(dtype).to(values.dtype), values)


def cast_state(state: Mapping[str, Tensor], choose: Callable[[Tensor], torch.dtype]) -> dict[str, Tensor]:
    """Convert floating-point tensors to the dtype that `choose` returns. Tensors that share memory still share it.

    So tied weights are still recognised.
    """
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    result = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            seen[key] = tensor.to(choose(tensor)) if tensor.is_floating_point() else tensor
        result[name] = seen[key]
    return result


def count_bits(model: Model, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Bits per weight of each component in `state`, where a module's `weight` may be packed into several tensors.

    The names of these start with that of the parameter (`weight_packed`, `weight_scale`).
    """
    paths = {id(parameter): name for name, parameter in model.network.named_parameters()}
    answer = {}
    for name, weight_view in model.weight_views.items():
        path = paths[id(weight_view.parameter)]
        tensors = [state[path]] if path in state else []
        if not tensors or not tensors[0].is_floating_point():
            tensors += [tensor for key, tensor in state.items() if key.startswith(f"{path}_")]
        answer[name] = 8 * sum(tensor.nbytes for tensor in tensors) / weight_view.parameter.numel()
    return answer


def save_dense(model: Model, folder: Path, plan: Plan, provenance: Mapping[str, Any]) -> Exported:
    """Save weights, config, generation settings, tokenizer and `compression.json` to `folder`, which is replaced.

    Every tensor keeps its scored values; it is in the checkpoint's dtype if that is exact.
    """
    dtype, stored = choose_saved_dtype(model), model.stored_dtype
    state = cast_state(model.network.state_dict(), lambda tensor: choose_stored(model, tensor))
    size = write_folder(model, folder, plan, provenance, state, lambda folder: {"dtype": name_dtype(dtype)})
    wide = sum(tensor.is_floating_point() and tensor.dtype != stored for tensor in state.values())
    notes: tuple[str, ...] = ()
    if wide:
        notes = (f"{wide} tensors are saved in {dtype}: {stored} does not represent their values exactly.",)
    notes += note_copied(model, folder)
    return Exported(folder, DENSE, dtype, size, count_bits(model, state), notes=notes)


def write_folder(
    model: Model,
    folder: Path,
    plan: Plan,
    provenance: Mapping[str, Any],
    state: Mapping[str, Tensor],
    describe: Callable[[Path], dict[str, Any]],
) -> int:
    """Replace `folder` by one with `state`, the model's config, the tokenizer and `compression.json`.

    `describe` gets the folder with the weights, and returns additional entries of config.json. `compression.json` holds
    the plan and the `provenance`, and names the file of the plan's rows, if it has any. Returns the bytes of the weight
    files; raises OutputError.
    """
    with replaced_folder(folder) as partial:
        with quiet_loading(model.device), generation_set_aside(model):
            model.network.save_pretrained(partial, state_dict=dict(state))
        config_path = partial / "config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        write_json(config_path, unannounce(model, config) | describe(partial))
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(partial)
        copy_companions(model.folder, partial)
        write_rows(plan, partial / ROWS_PATH)
        write_json(partial / "compression.json", {"plan": plan_to_json(plan, ROWS_PATH), **provenance})
        record_saved(folder, partial)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@contextmanager
def generation_set_aside(model: Model) -> Iterator[None]:
    """Inside, the network has the default generation settings if the base has a file of them.

    That file is copied as it is. transformers refuses to save settings that it calls invalid.
    """
    if not (model.folder / GENERATION).is_file():
        yield
        return
    own = model.network.generation_config
    model.network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.network.generation_config = own


def unannounce(model: Model, config: dict[str, Any]) -> dict[str, Any]:
    """The config without the layers for further tokens, if the base has them and the network does not."""
    if not model.unused.predict_next:
        return config
    announced = [name for name, value in config.items() if NEXT_TOKENS.search(name) and type(value) is int]
    return config | dict.fromkeys(announced, 0)


def copy_companions(base: Path, folder: Path) -> None:
    """Copy every file of the base that belongs to the model and is not in `folder`, and the generation settings.

    What a link brings in from elsewhere is not copied: the folder may be a stranger's, and the result may be published.
    """
    for path in find_companions(base):
        if leads_out(path, base):
            log.warning("%s is a link that leads out of the model's folder; it is not part of the saved model", path)
            continue
        target = folder / path.relative_to(base)
        if path.name == GENERATION or not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def note_copied(model: Model, folder: Path) -> tuple[str, ...]:
    """A note for the user on the files of the base that are the same in the saved `folder`."""
    same = [
        path.relative_to(model.folder).as_posix()
        for path in find_companions(model.folder)
        if not leads_out(path, model.folder)
        and filecmp.cmp(path, folder / path.relative_to(model.folder), shallow=False)
    ]
    return (f"Copied from the base as they are: {', '.join(same)}.",) if same else ()


def check_savable(model: Model) -> None:
    """Save config, generation settings and tokenizer to a temporary folder, before hours of work.

    Raises ModelError if one of them cannot be saved.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch, quiet_loading(model.device), generation_set_aside(model):
            model.network.config.save_pretrained(scratch)
            if model.network.can_generate():
                model.network.generation_config.save_pretrained(scratch)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(scratch)
    except Exception as error:  # transformers, tokenizers and remote code raise what they like
        if is_full_disk(error) or isinstance(error, FileNotFoundError):  # no folder has room for a temporary file
            log.warning("config and tokenizer could not be saved on trial: %s", shorten_reason(error))
            return
        raise ModelError(
            f"config or tokenizer of `{model.folder}` cannot be saved again ({shorten_reason(error)}); correct them"
        ) from error


def name_dtype(dtype: torch.dtype) -> str:
    """The name of a dtype in config.json."""
    return str(dtype).removeprefix("torch.")
