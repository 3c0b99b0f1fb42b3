"""Models larger than memory: every parameter is a view into the files of the checkpoint, which are mapped, not read.

The mapping is private: what is written goes to pages of this process, and never to the files.
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from compressor.errors import ConfigError, ModelError
from compressor.models.checkpoint import shorten_reason
from compressor.models.loading import check_finite, check_report, refuse_folder
from compressor.models.placement import choose_dtype
from compressor.settings import DType

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
"""By their names in a safetensors header."""
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""A mapping that may be larger than memory; Python names it from 3.13 on."""
RENAMED = 0.5
"""Share of the weights that may lie under other names: transformers renames some, and must not stack the others."""
FIX = (
    "load it once without `model.stream` and save it with `save_pretrained(DIR, save_original_format=False)`, or unset "
    "`model.stream`"
)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: `start` in the file behind `mapped`, and `stored`, the same bytes, which nobody writes."""

    mapped: mmap.mmap
    start: int
    stored: Tensor


class MappedWeights:
    """The `tensors` of safetensors files, by name: views into the mapped files.

    A tensor that does not lie at a multiple of its item size, which a processor cannot be given, is a copy.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._places: dict[int, _Place] = {}
        for path in files:
            self._map_file(path)

    def release(self, tensor: Tensor) -> None:
        """Give back the memory that writes to one of the tensors took, if it has come to be again what the file says.

        That of a tensor which lies elsewhere, or has other values now, stays as it is.
        """
        place = self._places.get(tensor.data_ptr())
        if place is None or not torch.equal(_see_bytes(tensor), place.stored):
            return
        first = -(-place.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (place.start + place.stored.numel() - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            place.mapped.madvise(mmap.MADV_DONTNEED, first, length)

    def _map_file(self, path: Path) -> None:
        with path.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header: dict[str, Any] = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            mapped, stored = (_map_privately(path, opened.fileno()) for _ in range(2))
        for name, entry in header.items():
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            if entry["dtype"] not in DTYPES:
                raise ModelError(
                    f"`{name}` of `{path}` is stored as {entry['dtype']}; `model.stream` takes "
                    f"{', '.join(DTYPES)}, unset it or choose another checkpoint"
                )
            tensor = _view_bytes(mapped, start, stop, DTYPES[entry["dtype"]]).view(entry["shape"])
            self.tensors[name] = tensor
            if stop > start:
                bits = torch.frombuffer(stored, dtype=torch.uint8, count=stop - start, offset=start)
                self._places[tensor.data_ptr()] = _Place(mapped, start, bits)


def _map_privately(path: Path, descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"`{path}` cannot be mapped into memory ({shorten_reason(error)}); unset `model.stream`, or save the model "
            "in smaller files with `save_pretrained(DIR, max_shard_size=...)`"
        ) from error


def _view_bytes(mapped: mmap.mmap, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """`[number]`: a tensor with a storage of its own, so that nobody takes it for tied to its neighbours."""
    if stop == start:
        return torch.empty(0, dtype=dtype)
    if start % dtype.itemsize:
        return torch.frombuffer(bytearray(mapped[start:stop]), dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start)


def _see_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def require_stored_dtype(wanted: DType, stored: str) -> torch.dtype:
    """The dtype `stored`, named as in a safetensors header, in which a streamed model computes.

    Raises ConfigError if another one is wanted, and ModelError if nothing can be computed in it.
    """
    dtype = DTYPES.get(stored)
    if dtype is None or dtype.itemsize > 4 or not dtype.is_floating_point:
        raise ModelError(
            f"`model.stream` computes in the dtype that is stored, which must be float32, bfloat16 or float16, got "
            f"{stored}; unset it or choose another checkpoint"
        )
    if choose_dtype(wanted, "model.dtype", dtype) != dtype:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"`model.dtype` must be auto or {name} with `model.stream`, which computes in the dtype that is stored, "
            f"got {wanted.value}; change it or unset `model.stream`"
        )
    return dtype


def stream_network(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool, files: Iterable[Path]
) -> tuple[PreTrainedModel, MappedWeights]:
    """The network on the CPU, its parameters in `files`, and what maps them.

    Tensors of another dtype than `dtype` are copied. Raises ModelError unless the folder gives the network every
    tensor, all finite, each as the network has it.
    """
    pages = MappedWeights(files)
    try:
        with torch.device("meta"):
            blank = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:  # remote code raises what it likes
        raise refuse_folder(folder, error) from error
    _check_names(folder, blank, pages.tensors)
    try:
        network, report = type(blank).from_pretrained(
            None,
            config=config,
            state_dict=dict(pages.tensors),
            dtype=dtype,
            generation_config=_read_generation(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them
        )
    except Exception as error:  # as above
        raise refuse_folder(folder, error) from error
    network.config.name_or_path = network.name_or_path = str(folder)
    check_report(folder, report)
    _check_mapped(folder, network, pages.tensors, dtype)
    check_finite(folder, network)
    return network, pages


def _read_generation(folder: Path) -> GenerationConfig | None:
    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _find_stored(network: PreTrainedModel, name: str, stored: Mapping[str, Tensor]) -> Tensor | None:
    """The tensor of a parameter, under its name there or in the body alone."""
    found = stored.get(name)
    return stored.get(name.removeprefix(f"{network.base_model_prefix}.")) if found is None else found


def _check_names(folder: Path, blank: PreTrainedModel, stored: Mapping[str, Tensor]) -> None:
    """Refuse, before anything takes memory, a checkpoint that transformers makes over; a tie counts by either name."""
    found: dict[int, bool] = {}
    names: dict[int, str] = {}
    sizes: dict[int, int] = {}
    for name, parameter in blank.named_parameters(remove_duplicate=False):
        tensor = _find_stored(blank, name, stored)
        fits = tensor is not None and tensor.shape == parameter.shape
        found[id(parameter)] = found.get(id(parameter), False) or fits
        names.setdefault(id(parameter), name)
        sizes[id(parameter)] = parameter.numel()
    others = [key for key in names if not found[key]]
    if sum(sizes[key] for key in others) > RENAMED * sum(sizes.values()):
        raise _refuse_stored(folder, names[max(others, key=lambda key: sizes[key])])


def _check_mapped(folder: Path, network: PreTrainedModel, stored: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Every matrix is where the files are, but those that were cast; vectors may be copies: some are padded."""
    mapped = {tensor.data_ptr() for tensor in stored.values()}
    for name, parameter in network.named_parameters():
        tensor = _find_stored(network, name, stored)
        is_cast = parameter.dtype is not dtype or (tensor is not None and tensor.dtype is not dtype)
        if parameter.data_ptr() not in mapped and parameter.dim() > 1 and not is_cast:
            raise _refuse_stored(folder, name)


def _refuse_stored(folder: Path, name: str) -> ModelError:
    return ModelError(
        f"`{name}` is not stored in `{folder}` as the network holds it, so that it cannot stay on disk; {FIX}"
    )
