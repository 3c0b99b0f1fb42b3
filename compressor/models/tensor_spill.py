"""Tensors that wait: in memory as far as that is granted, then in files of a temporary folder."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Hashable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from compressor.errors import OutputError


class TensorSpill:
    """Keeps tensors on the host by key; at most `limit` bytes of them in memory. Use it as a context manager."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._kept: dict[Hashable, Tensor] = {}
        self._files: dict[Hashable, Path] = {}
        self._numbers = itertools.count()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> TensorSpill:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor in place of what was there; raises OutputError where the disk is full."""
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
        """What was put there, on the host."""
        if key in self._kept:
            return self._kept[key]
        return safetensors.torch.load_file(self._files[key])["tensor"]

    def drop(self, key: Hashable) -> None:
        """Forget what was put there, if anything was."""
        if key in self._kept:
            self.held -= self._kept.pop(key).nbytes
        elif key in self._files:
            self._files.pop(key).unlink(missing_ok=True)
