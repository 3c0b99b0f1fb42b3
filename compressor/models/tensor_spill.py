"""A store for tensors in host memory that overflows to disk."""

import itertools
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Self

import safetensors.torch
from torch import Tensor

from compressor.errors import OutputError


class TensorSpill:
    """Stores tensors by key: up to `limit` bytes in memory, the others in temporary files.

    Use it as a context manager, which removes the files.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._kept: dict[Hashable, Tensor] = {}
        self._files: dict[Hashable, Path] = {}
        self._numbers = itertools.count()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Store a tensor in place of an earlier one; raises OutputError if the disk is full."""
        self.drop(key)
        if self.held + tensor.nbytes <= self.limit:
            self._kept[key] = tensor.cpu()
            self.held += tensor.nbytes
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="compressor-")
        path = Path(self._folder.name) / f"{next(self._numbers)}.safetensors"
        try:
            safetensors.torch.save_file({"tensor": tensor.cpu().contiguous()}, path)
        except (OSError, safetensors.SafetensorError) as error:
            raise OutputError(
                f"cannot keep tensors in {self._folder.name}: {error}; free some space, or set TMPDIR elsewhere"
            ) from None
        self._files[key] = path

    def get(self, key: Hashable) -> Tensor:
        """The tensor of a key, on the host."""
        if key in self._kept:
            return self._kept[key]
        return safetensors.torch.load_file(self._files[key])["tensor"]

    def drop(self, key: Hashable) -> None:
        if key in self._kept:
            self.held -= self._kept.pop(key).nbytes
        elif key in self._files:
            self._files.pop(key).unlink(missing_ok=True)
