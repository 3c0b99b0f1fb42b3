"""A cache of estimates on disk: a run with another budget for the same model need not compute them again."""

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
from compressor.contracts import Estimate, EstimateRequest, Metric, Treatment
from compressor.contracts.requests import compressors_of
from compressor.data.reference import cache_folder
from compressor.errors import ConfigError, OutputError
from compressor.evaluation.evaluator import Evaluator

log = logging.getLogger(__name__)
FORMAT = 3
LIMIT = 1 << 30
"""The largest size of the cache in bytes; the least recently read files are removed first."""
VARIABLE = "COMPRESSOR_CACHE_BYTES"
"""The environment variable that sets another limit; 0 switches the cache off."""
PACKAGES = ("compressor", "torch", "transformers", "numpy")
LEVEL, REACHED = "level", "reached"
ARRAYS = ("changes", "rows", "apart", "line")


@dataclass(frozen=True)
class Known:
    """A cached answer. For a measured one, `level` `[sequence]` is the objective's first value before treatment."""

    estimates: dict[str, Estimate]
    level: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class EstimateCache:
    """Estimates of `metric` for the untreated model of `evaluator`; each answer is a file in `folder`.

    The name of a file is a hash of everything that the answer depends on: the model's files, components, dtype and
    device; the tokens of the reference and of the text that the metric reads; the request; the options of metric and
    compressors; seeds; and the source code. If any of these changes, the name changes, so that a file never holds a
    wrong answer. `mode` is the evaluator's mode before the answer was computed, because a measurement may change it.
    """

    folder: Path
    limit: int
    evaluator: Evaluator
    treatments: Treatments
    metric: Metric
    mode: str
    seed: int

    def read(self, request: EstimateRequest) -> Known | None:
        """The cached answer to a request; None if there is none, or if it cannot be read."""
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
        """Write an answer in one atomic step, and remove old files beyond the limit; failures are only logged."""
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
        """The file of an answer, named by the sha256 of everything that it depends on."""
        digest = hashlib.sha256(json.dumps(self._list_facts(request)).encode())
        windows = self.evaluator.windows.get(request.objective)
        text = () if windows is None else (windows.tokens, windows.counted)
        for part in (self.evaluator.reference.tokens, *text):
            digest.update(part.contiguous().numpy().tobytes())
        for name, options in request.options.items():
            digest.update(json.dumps([name, len(options)]).encode())
            for option in options:
                digest.update(repr(option and (option.compressor, option.amount, dict(option.options))).encode())
                digest.update(np.array(option.rows if option and option.rows else (), dtype=np.float64).tobytes())
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _list_facts(self, request: EstimateRequest) -> list[object]:
        """Everything that an answer depends on, except arrays."""
        model, reference = self.evaluator.model, self.evaluator.reference
        cuda = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None
        names = sorted(compressors_of(request.options))
        compressors = [self.treatments.resolve(Treatment(name, 0.0)) for name in names]
        versions = [read_version(name) for name in PACKAGES]
        modules = {type(self.metric).__module__, *(type(compressor).__module__ for compressor in compressors)}
        return [
            FORMAT, versions, hash_sources(frozenset({__name__, *modules})), model.content_hash(), str(model.dtype),
            model.device.type, cuda, torch.get_num_threads(), model.mapped_weights is not None,
            [repr(component) for component in model.components.values()],
            list(reference.tokens.shape), reference.prefix_tokens, reference.batch,
            repr(self.metric), [repr(compressor) for compressor in compressors], self.treatments.seed, self.seed,
            self.mode,
            request.objective, request.measured, request.by_row,
            slice(request.start, request.stop).indices(len(reference.tokens)),
        ]  # fmt: skip


def encode(known: Known) -> bytes:
    """An answer as the bytes of a safetensors file; the arrays of a component are named by its number."""
    arrays = {
        f"{number}.{name}": np.ascontiguousarray(array)
        for number, estimate in enumerate(known.estimates.values())
        for name in ARRAYS
        if (array := getattr(estimate, name)) is not None
    }
    arrays[REACHED] = np.array([estimate.reached for estimate in known.estimates.values()])
    if known.level is not None:
        arrays[LEVEL] = np.ascontiguousarray(known.level)
    return safetensors.numpy.save(arrays)


def decode(content: bytes, names: Collection[str]) -> Known:
    """The answer for components of these names; raises KeyError, ValueError or SafetensorError for other content."""
    arrays, found = safetensors.numpy.load(content), dict[str, Estimate]()
    for number, (name, reached) in enumerate(zip(names, arrays[REACHED].tolist(), strict=True)):
        changes, rows, apart, line = (arrays.get(f"{number}.{array}") for array in ARRAYS)
        if changes is None:
            raise KeyError(f"{number}.changes")
        found[name] = Estimate(changes, rows, reached, apart, line)
    return Known(found, arrays.get(LEVEL))


def remove_oldest(folder: Path, limit: int) -> None:
    """Remove the least recently read files until the others take at most `limit` bytes."""
    files = sorted(((path, path.stat()) for path in folder.glob("*.safetensors")), key=lambda pair: pair[1].st_mtime_ns)
    excess = sum(facts.st_size for _, facts in files) - limit
    for path, facts in files:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= facts.st_size


@functools.cache
def hash_sources(modules: frozenset[str]) -> str:
    """sha256 of the source code of the packages of these modules: if a formula changes, the hash changes."""
    digest = hashlib.sha256()
    for package in sorted({module.partition(".")[0] for module in modules}):
        origin = getattr(sys.modules[package], "__file__", None)
        if origin is None:
            continue
        path = Path(origin)  # a module may be in no package
        for source in sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]:
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def read_version(package: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_limit() -> int:
    """The limit of the cache in bytes; raises ConfigError if the environment variable is not a number."""
    given = os.environ.get(VARIABLE, str(LIMIT))
    if not given.isdecimal():
        raise ConfigError(f"`{VARIABLE}` must be a number of bytes, got {given!r}; 0 keeps no estimates")
    return int(given)


def estimates_folder() -> Path:
    """The folder of the cache, beside that of the references."""
    return cache_folder().with_name("estimates")
