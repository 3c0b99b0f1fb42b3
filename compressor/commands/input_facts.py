"""What results depend on besides the configuration, as far as it is known before a model is loaded.

A run records these facts in report.json, so that a multirun can compare them with its finished jobs.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from compressor.artifacts.plan_file import hash_plan
from compressor.artifacts.run_record import collect_versions
from compressor.contracts import Metric, Recovery
from compressor.contracts.declarations import read_text, read_training_texts
from compressor.data.text_files import find_file
from compressor.models import checkpoint
from compressor.sensitivity.cache import hash_sources
from compressor.settings import DataSettings, DataSource, Settings

RECOVERY = "compressor.recovery.recoverer"
"""The module on which, with all that it imports, the result of a recovery depends."""
TOKENIZER = "the tokenizer in model.path"
"""Its name among the texts: other tokens are another text."""
HARMLESS = ("wandb", "pluggy", "hydra-core", "gguf")
"""Packages on whose version no score depends."""


def list_input_facts(
    settings: Settings, metrics: Mapping[str, Metric], weights: str | None = None
) -> dict[str, object]:
    """Versions, code, weights, texts and plan. `weights` is the hash of the model's files, if it is known."""
    return {
        "versions": relevant_versions(collect_versions()),
        "code": hash_code(settings, metrics),
        "weights": weights or hash_weights(settings),
        "texts": hash_texts(settings, metrics),
        "plan": hash_plan_of(settings),
    }


def relevant_versions(versions: Mapping[str, str]) -> dict[str, str]:
    """The versions on which a score depends."""
    return {name: version for name, version in versions.items() if name not in HARMLESS}


def hash_code(settings: Settings, metrics: Mapping[str, Metric]) -> str:
    """sha256 of the source code of this package and of those of the plugins."""
    plugins = [*metrics.values(), *settings.compressor.values(), settings.schedule]
    packages = {__name__, *(type(plugin).__module__ for plugin in plugins)}
    if settings.recovery is not None:
        packages |= {type(settings.recovery).__module__, RECOVERY}
    return hash_sources(frozenset(packages))


def hash_plan_of(settings: Settings) -> str | None:
    """sha256 of the file that a schedule reads, such as a plan; None without one."""
    path = getattr(settings.schedule, "path", None)
    if not isinstance(path, str) or not Path(path).expanduser().is_file():
        return None
    return hash_plan(Path(path).expanduser())


def hash_weights(settings: Settings) -> str:
    """sha256 of the files of the model, as `Model.files_hash`. Raises ModelError if they are not there."""
    folder = checkpoint.find_folder(settings.model)
    return _hash_once(folder, _stamp(checkpoint.find_hashed(folder, settings.model.trust_remote_code)))


def hash_texts(settings: Settings, metrics: Mapping[str, Metric]) -> dict[str, str]:
    """sha256 of the tokenizer, and of each file with texts, by the setting that names it.

    A data set of the hub has its name in the configuration.
    """
    files = _stamp(checkpoint.find_tokenizer_files(checkpoint.find_folder(settings.model)))
    tokenizer = {TOKENIZER: hashlib.sha256("".join(map(_hash_file, files)).encode()).hexdigest()}
    read = {name: _stamp([find_file(path)]) for name, path in list_texts(settings, metrics)}
    return tokenizer | {name: _hash_file(stamp) for name, (stamp,) in read.items()}


def list_texts(settings: Settings, metrics: Mapping[str, Metric]) -> Iterator[tuple[str, str]]:
    """The files with texts that a run reads: the setting with its value, and the path."""
    if settings.data.source is DataSource.text and settings.data.path:
        yield name_prefixes(settings.data), settings.data.path
    for name, metric in metrics.items():
        if (text := read_text(metric)) is not None and text.path is not None:
            yield name_windows(name, metric), text.path
    if settings.recovery is not None and (texts := read_training_texts(settings.recovery)) is not None and texts.path:
        yield name_training_texts(settings.recovery), texts.path


def name_prefixes(data: DataSettings) -> str:
    """The setting that says where prefixes come from, with its value."""
    key = {DataSource.text: "path", DataSource.hf: "name"}.get(data.source)
    return f"data.{key}={getattr(data, key)}" if key else "data=self"


def name_windows(name: str, metric: Metric) -> str:
    """The setting that says which text a metric reads, with its value; the metric where that is the run's text."""
    text = read_text(metric)
    return name_source(f"metric.{name}", metric, "path", None if text is None else text.path)


def name_training_texts(recovery: Recovery) -> str:
    """The setting that says on which texts a recovery trains, with its value."""
    texts = read_training_texts(recovery)
    path, dataset = (None, None) if texts is None else (texts.path, texts.dataset)
    return name_source("recovery", recovery, "dataset" if dataset else "path", dataset or path)


def name_source(group: str, plugin: object, option: str, source: str | None) -> str:
    """The option that leads to a source of text, with its value; the group with the value if no option has it."""
    if source is None:
        return group
    return f"{group}.{option}={source}" if getattr(plugin, option, None) == source else f"{group} ({source})"


Stamp = tuple[Path, tuple[int, ...]]
"""A file, and what changes about it where its content does."""


def _stamp(files: Sequence[Path]) -> tuple[Stamp, ...]:
    found = [(path, path.stat()) for path in files]
    return tuple((path, (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)) for path, s in found)


@functools.lru_cache(maxsize=16)
def _hash_once(folder: Path, stamps: tuple[Stamp, ...]) -> str:
    """sha256 of the files, computed once for all jobs of a multirun."""
    return checkpoint.hash_content(folder, [path for path, _ in stamps])


@functools.lru_cache(maxsize=64)
def _hash_file(stamp: Stamp) -> str:
    with stamp[0].open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
