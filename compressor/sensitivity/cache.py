"""What single treatments do, kept on disk from run to run: another budget of the same model then asks nothing anew."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray

from compressor.artifacts.files import write_bytes
from compressor.compression.apply import Treatments
from compressor.contracts import Compressor, Estimate, EstimateRequest, Metric, Treatment
from compressor.data.reference import Reference, cache_folder
from compressor.data.texts import Windows
from compressor.errors import ConfigError, OutputError
from compressor.models import Model

log = logging.getLogger(__name__)
FORMAT = 2
LIMIT = 1 << 30
"""Bytes that all answers may take together; those that were not read for longest go."""
VARIABLE = "COMPRESSOR_CACHE_BYTES"
"""The environment variable that sets another limit; 0 keeps nothing."""
PACKAGES = ("compressor", "torch", "transformers", "numpy")
LEVEL = "level"
ARRAYS = ("changes", "rows", "apart", "line")


@dataclass(frozen=True)
class Known:
    """An answer, and the `level` `[sequence]` that a measured one starts from: the objective's first value."""

    estimates: dict[str, Estimate]
    level: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EstimateCache:
    """Answers of `metric` for the untreated `model`, each in a file of `folder` that is named by all that decides it.

    These are the model's files, its components, precision and device; the tokens of the reference, and of `windows` of
    text; the request; the options of metric and compressors; seeds; and the code of all that computes. So a file is
    either right or has another name.
    """

    folder: Path
    limit: int
    model: Model
    reference: Reference
    treatments: Treatments
    metric: Metric
    windows: Windows | None
    mode: str
    seed: int

    def read(self, request: EstimateRequest) -> Known | None:
        """The answer to an earlier request of the same; None where there is none, or none that can be read."""
        path = self.find_path(request)
        if not path.exists():
            return None
        try:
            known = decode(path.read_bytes(), list(request.options))
            os.utime(path)
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            log.warning("the cached estimates %s are not readable and are made anew: %s", path.name, error)
            return None
        return known

    def write(self, request: EstimateRequest, known: Known) -> None:
        """Keep an answer, whole or not at all, and remove what is too much; what cannot be written is only logged."""
        content = encode(known)
        if len(content) > self.limit:
            log.info("estimates of %d bytes are more than the cache takes", len(content))
            return
        try:
            write_bytes(self.find_path(request), content)
            remove_oldest(self.folder, self.limit)
        except (OutputError, OSError) as error:
            log.warning("the estimates are not cached: %s", error)

    def find_path(self, request: EstimateRequest) -> Path:
        """The file of an answer: sha256 of all that decides it."""
        digest = hashlib.sha256(json.dumps(self._list_facts(request)).encode())
        digest.update(self.reference.tokens.contiguous().numpy().tobytes())
        if self.windows is not None:
            for part in (self.windows.tokens, self.windows.counted):
                digest.update(part.contiguous().numpy().tobytes())
        for name, options in request.options.items():
            digest.update(json.dumps([name, len(options)]).encode())
            for option in options:
                digest.update(repr(option and (option.compressor, option.amount, dict(option.options))).encode())
                digest.update(np.array(option.rows if option and option.rows else (), dtype=np.float64).tobytes())
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _list_facts(self, request: EstimateRequest) -> list[object]:
        """All that decides an answer and is no array."""
        model, reference = self.model, self.reference
        cuda = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None
        compressors = [repr(compressor) for compressor in self._list_compressors(request)]
        versions = [read_version(name) for name in PACKAGES]
        modules = {type(self.metric).__module__, *(type(c).__module__ for c in self._list_compressors(request))}
        return [
            FORMAT, versions, hash_sources(frozenset({__name__, *modules})), model.content_hash(), str(model.dtype),
            model.device.type, cuda, torch.get_num_threads(), model.mapped_weights is not None,
            [repr(component) for component in model.components.values()],
            list(reference.tokens.shape), reference.prefix_tokens, reference.batch,
            repr(self.metric), compressors, self.treatments.seed, self.seed, self.mode,
            request.objective, request.measured, request.by_row,
            slice(request.start, request.stop).indices(len(reference.tokens)),
        ]  # fmt: skip

    def _list_compressors(self, request: EstimateRequest) -> list[Compressor]:
        """Each compressor of the request, with its options."""
        found: dict[str, Compressor] = {}
        for options in request.options.values():
            for option in options:
                if option is not None and option.compressor not in found:
                    found[option.compressor] = self.treatments.resolve(Treatment(option.compressor, option.amount))
        return [found[name] for name in sorted(found)]


def encode(known: Known) -> bytes:
    """Arrays as they are, by the number of their component; what is known of them besides as metadata."""
    arrays = {
        f"{number}.{name}": np.ascontiguousarray(array)
        for number, estimate in enumerate(known.estimates.values())
        for name in ARRAYS
        if (array := getattr(estimate, name)) is not None
    }
    reached = [estimate.reached for estimate in known.estimates.values()]
    arrays |= {} if known.level is None else {LEVEL: np.ascontiguousarray(known.level)}
    return safetensors.numpy.save(arrays, {"reached": json.dumps(reached)})


def decode(content: bytes, names: Collection[str]) -> Known:
    """The opposite, for components of these names; raises KeyError, ValueError or SafetensorError for what is not."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts, arrays = header["__metadata__"], safetensors.numpy.load(content)
    found: dict[str, Estimate] = {}
    for number, (name, reached) in enumerate(zip(names, json.loads(facts["reached"]), strict=True)):
        changes, rows, apart, line = (arrays.get(f"{number}.{array}") for array in ARRAYS)
        if changes is None:
            raise KeyError(f"{number}.changes")
        found[name] = Estimate(changes, rows, reached, apart, line)
    return Known(found, arrays.get(LEVEL))


def remove_oldest(folder: Path, limit: int) -> None:
    """Remove files that were not read for longest until the rest takes at most `limit` bytes."""
    files = sorted(((path, path.stat()) for path in folder.glob("*.safetensors")), key=lambda pair: pair[1].st_mtime_ns)
    excess = sum(facts.st_size for _, facts in files) - limit
    for path, facts in files:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= facts.st_size


@functools.cache
def hash_sources(modules: frozenset[str]) -> str:
    """sha256 of the code of the packages that these modules are in: a changed formula is another one."""
    digest = hashlib.sha256()
    for package in sorted({module.partition(".")[0] for module in modules}):
        for path in find_sources(package):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def read_version(package: str) -> str | None:
    """Of an installed distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_sources(package: str) -> list[Path]:
    """The Python files of an imported package, or of a module that is in none."""
    origin = getattr(sys.modules[package], "__file__", None)
    if origin is None:
        return []
    path = Path(origin)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def read_limit() -> int:
    """How many bytes may be kept; raises ConfigError for what is no number."""
    given = os.environ.get(VARIABLE, str(LIMIT))
    if not given.isdecimal():
        raise ConfigError(f"`{VARIABLE}` must be a number of bytes, got {given!r}; 0 keeps no estimates")
    return int(given)


def estimates_folder() -> Path:
    """Beside the references."""
    return cache_folder().with_name("estimates")
