"""Models larger than memory: every parameter is a view into the memory-mapped files of the checkpoint.

The mapping is private (copy-on-write): writes go to memory of this process, never to the files.
"""

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
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from compressor.errors import ConfigError, ModelError
from compressor.models.checkpoint import GENERATION, shorten_reason
from compressor.models.loading import check_finite, check_report, choose_dtype, find_stored
from compressor.models.stored_tensors import refuse_folder
from compressor.settings import DType

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
"""Names in a safetensors header -> dtypes."""
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""The flag for a mapping that may be larger than memory; Python has a name for it from 3.13 on."""
RENAMED = 0.5
"""The largest share of the weights that may have other names on disk: transformers renames some tensors."""
FIX = (
    "load it once without `model.stream` and save it with `save_pretrained(DIR, save_original_format=False)`, or unset "
    "`model.stream`"
)


@dataclass(frozen=True)
class _Place:
    """A tensor at the offset `start` of the `mapped` file; `stored` are its bytes in a second, unchanged mapping."""

    mapped: mmap.mmap
    start: int
    stored: Tensor


class MappedWeights:
    """The `tensors` of safetensors files, by name: views into the mapped files.

    A tensor whose offset is not a multiple of its item size is copied, because kernels need aligned memory.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._places: dict[int, _Place] = {}
        for path in files:
            self._map_file(path)

    def release(self, tensor: Tensor) -> None:
        """Free the memory that writes to a tensor have taken, if the tensor again has the values of the file.

        Nothing happens to a tensor that is not mapped, or that has other values.
        """
        place = self._places.get(tensor.data_ptr())
        if place is None or not torch.equal(tensor.detach().reshape(-1).view(torch.uint8), place.stored):
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
    """`[number]`: a tensor with a storage of its own, so that it does not look tied to the tensors beside it."""
    if stop == start:
        return torch.empty(0, dtype=dtype)
    if start % dtype.itemsize:
        return torch.frombuffer(bytearray(mapped[start:stop]), dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=(stop - start) // dtype.itemsize, offset=start)


def require_stored_dtype(wanted: DType, stored: str) -> torch.dtype:
    """The dtype in which a streamed model computes; `stored` is its name in a safetensors header.

    Raises ConfigError if another one is wanted, and ModelError if a model cannot compute in it.
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
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype, blank: PreTrainedModel, files: Iterable[Path]
) -> tuple[PreTrainedModel, MappedWeights]:
    """The network on the CPU with its parameters in the mapped `files`, and the mapping; `blank` has no weights yet.

    Tensors of another dtype than `dtype` are copied. Raises ModelError unless the folder has every tensor of the
    network, all finite, each with the shape and layout that it has in the network.
    """
    mapped_weights = MappedWeights(files)
    _check_names(folder, blank, mapped_weights.tensors)
    try:
        has_settings = (folder / GENERATION).is_file()
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True) if has_settings else None
        network, report = type(blank).from_pretrained(
            None,
            config=config,
            state_dict=dict(mapped_weights.tensors),
            dtype=dtype,
            generation_config=generation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them
        )
    except Exception as error:  # remote code raises what it likes
        raise refuse_folder(folder, error) from error
    network.config.name_or_path = network.name_or_path = str(folder)
    check_report(folder, report)
    _check_mapped(folder, network, mapped_weights.tensors, dtype)
    check_finite(folder, network)
    return network, mapped_weights


def _check_names(folder: Path, blank: PreTrainedModel, stored: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint that transformers converts, before it takes memory; one name of tied weights is enough."""
    found = set[int]()
    sizes: dict[int, tuple[int, str]] = {}
    for name, parameter in blank.named_parameters(remove_duplicate=False):
        sizes.setdefault(id(parameter), (parameter.numel(), name))
        tensor = find_stored(blank, name, stored)
        if tensor is not None and tensor.shape == parameter.shape:
            found.add(id(parameter))
    others = [pair for key, pair in sizes.items() if key not in found]
    if sum(size for size, _ in others) > RENAMED * sum(size for size, _ in sizes.values()):
        _, largest = max(others, key=lambda pair: pair[0])
        raise _refuse_stored(folder, largest)


def _check_mapped(folder: Path, network: PreTrainedModel, stored: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Check that every matrix is in the mapped files, unless it was cast; vectors may be copies, as some are padded."""
    mapped = {tensor.data_ptr() for tensor in stored.values()}
    for name, parameter in network.named_parameters():
        tensor = find_stored(network, name, stored)
        is_cast = parameter.dtype is not dtype or (tensor is not None and tensor.dtype is not dtype)
        if parameter.data_ptr() not in mapped and parameter.dim() > 1 and not is_cast:
            raise _refuse_stored(folder, name)


def _refuse_stored(folder: Path, name: str) -> ModelError:
    return ModelError(
        f"`{name}` is not stored in `{folder}` as the network holds it, so that it cannot stay on disk; {FIX}"
    )
