"""A cache of estimates on disk: a run with another budget for the same model need not compute them again."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.artifacts.checked_arrays import Content, read_arrays, remove_litter, try_write
from compressor.compression.apply import Treatments
from compressor.contracts import Estimate, EstimateRequest, Metric, Treatment
from compressor.contracts.requests import compressors_of
from compressor.data.reference import cache_folder
from compressor.evaluation.evaluator import Evaluator

log = logging.getLogger(__name__)
FORMAT = 4
PACKAGES = ("compressor", "torch", "transformers", "numpy")
OURS = re.compile(r"[0-9a-f]{64}\.safetensors")
"""How the cache names its files."""
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
        """The cached answer to a request; None if there is none, or if it cannot be believed."""
        path = self.find_path(request)
        content = read_arrays(path, path.stem)
        if content is None:
            return None
        with suppress(OSError):  # a cache that is only readable
            os.utime(path)
        known = from_content(content, list(request.options))
        return known if known is not None and self._fits(request, known) else None

    def _fits(self, request: EstimateRequest, known: Known) -> bool:
        """Whether there is a number for each option of each component; a line says where there is not."""
        for name, options in request.options.items():
            changes = known.estimates[name].changes
            if changes.ndim != 2 or changes.shape[1] != len(options):
                log.warning("the cached estimates of %s are not such as this run needs and are made anew", name)
                return False
        return True

    def write(self, request: EstimateRequest, known: Known) -> None:
        """Write an answer in one atomic step, and remove old files beyond the limit; failures are only logged."""
        path, content = self.find_path(request), to_content(known)
        size = sum(array.nbytes for array in content.arrays.values())
        if size > self.limit:
            log.info("estimates of %d bytes are more than the cache takes", size)
        elif try_write(path, path.stem, content.arrays, content.facts):
            with suppress(OSError):
                remove_oldest(self.folder, self.limit)

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
            list(reference.tokens.shape), reference.prefix_tokens, reference.batch, reference.weights is not None,
            repr(self.metric), [repr(compressor) for compressor in compressors], self.treatments.seed, self.seed,
            self.mode,
            request.objective, request.measured, request.by_row,
            slice(request.start, request.stop).indices(len(reference.tokens)),
        ]  # fmt: skip


def to_content(known: Known) -> Content:
    """An answer as arrays, named by the number of the component, and facts."""
    arrays = {
        f"{number}.{name}": array
        for number, estimate in enumerate(known.estimates.values())
        for name in ARRAYS
        if (array := getattr(estimate, name)) is not None
    }
    arrays |= {} if known.level is None else {LEVEL: known.level}
    return Content(arrays, {REACHED: [estimate.reached for estimate in known.estimates.values()]})


def from_content(content: Content, names: Collection[str]) -> Known | None:
    """The answer for components of these names; None for content that is none."""
    arrays, reached = content.arrays, content.facts.get(REACHED)
    if not isinstance(reached, list) or len(reached) != len(names):
        return None
    found: dict[str, Estimate] = {}
    for number, name in enumerate(names):
        changes, rows, apart, line = (arrays.get(f"{number}.{array}") for array in ARRAYS)
        if changes is None:
            return None
        found[name] = Estimate(changes, rows, bool(reached[number]), apart, line)
    return Known(found, arrays.get(LEVEL))


def remove_oldest(folder: Path, limit: int) -> None:
    """Remove what dead processes left, and the least recently read files beyond `limit` bytes; only files of ours."""
    remove_litter(folder)
    ours = [path for path in folder.iterdir() if OURS.fullmatch(path.name) and not path.is_symlink()]
    files = sorted(((path, path.stat()) for path in ours), key=lambda pair: pair[1].st_mtime_ns)
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


def estimates_folder() -> Path | None:
    """The folder of the cache, beside that of the references; None where there is none."""
    place = cache_folder()
    return None if place is None else place.with_name("estimates")
