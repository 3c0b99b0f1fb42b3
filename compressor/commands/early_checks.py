"""Checks of settings that need neither the model nor torch, so that a mistake is told within a second."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from compressor.data.text_files import find_file
from compressor.errors import ConfigError
from compressor.model_paths import find_local_folder
from compressor.settings import DataSettings, DataSource, Settings, SweepMode, SweepSettings

LARGEST_SEED, LARGEST = 2**63 - 1, 2**31 - 1
SOURCES = {"path": DataSource.text, "name": DataSource.hf, "subset": DataSource.hf}
"""Keys of `data` -> the only source that reads them."""
APPROXIMATE = ("screen", "delta", "lazy", "tolerance", "audit")
"""Keys of `sweep` that only the approximate mode reads."""


def check_settings(settings: Settings) -> None:
    """Raise CompressorError for numbers that no command can work with, and for files that are not there."""
    check_numbers(settings)
    check_source(settings.data)
    if settings.model.path is not None:
        find_local_folder(settings.model.path)


def check_source(data: DataSettings) -> None:
    """Raise CompressorError where the source of texts lacks its name, or its file."""
    if data.source is DataSource.hf and not data.name:
        raise ConfigError(
            "`data=hf` needs `data.name`, got none; give the data set's name, such as Salesforce/wikitext"
        )
    if data.source is DataSource.text:
        if not data.path:
            raise ConfigError("`data=text` needs `data.path`, got none; give a file with text, or with rows of it")
        find_file(data.path)


def check_numbers(settings: Settings) -> None:
    """Raise ConfigError for numbers that no command can work with."""
    for key, value in (("seed", settings.seed), ("data.seed", settings.data.seed)):
        if value < 0:
            raise ConfigError(f"`{key}` must not be negative, got {value}; choose 0 or more")
    for key in ("prefixes", "prefix_tokens", "continuation_tokens", "proof_prefixes"):
        value = getattr(settings.data, key)
        if value is not None and value < 1:
            raise ConfigError(f"`data.{key}` must be at least 1, got {value}; raise it")
    if settings.sweep.batch is not None and settings.sweep.batch < 1:
        raise ConfigError(f"`sweep.batch` must be at least 1, got {settings.sweep.batch}; raise it or leave it out")
    if not 0.0 < settings.sweep.delta < 1.0:
        raise ConfigError(f"`sweep.delta` must be in (0, 1), got {settings.sweep.delta:g}; 0.05 is one error in 20")
    if not 0.0 <= settings.sweep.tolerance < 1.0:
        raise ConfigError(
            f"`sweep.tolerance` must be in [0, 1), got {settings.sweep.tolerance:g}; 0.02 ignores gains below 2 %"
        )
    if settings.sweep.audit < 0:
        raise ConfigError(f"`sweep.audit` must not be negative, got {settings.sweep.audit}; 0 measures none of them")
    for key, value in list_integers(settings):
        largest = LARGEST_SEED if key.rpartition(".")[2] == "seed" else LARGEST
        if value > largest:
            raise ConfigError(f"`{key}` must be at most {largest}, got {value}; lower it")


def list_integers(settings: Settings) -> Iterator[tuple[str, int]]:
    """Key and value of every whole number in the settings, those in bytes and those of plugins excepted."""
    groups = {field.name: getattr(settings, field.name) for field in fields(settings)}
    yield "seed", groups["seed"]
    for group, options in groups.items():
        if is_dataclass(options) and group not in ("memory", "schedule"):
            for field in fields(options):
                if type(value := getattr(options, field.name)) is int:
                    yield f"{group}.{field.name}", value


def list_ineffective(settings: Settings) -> Iterator[str]:
    """A line for each setting that was given and has no effect."""
    data, sweep, model = settings.data, settings.sweep, settings.model
    if sweep.racing is not None:
        yield "`sweep.racing` is ignored: racing was removed, because it measured no gain; leave the setting out"
    for key, source in SOURCES.items():
        if getattr(data, key) is not None and data.source is not source:
            yield f"`data.{key}` has no effect with data={data.source.value}; add data={source.value}, or leave it out"
    if data.split != DataSettings.split and data.source is not DataSource.hf:
        yield f"`data.split` has no effect with data={data.source.value}; add data=hf, or leave it out"
    if data.column is not None and data.source is DataSource.self:
        yield "`data.column` has no effect with data=self; add data=text or data=hf, or leave it out"
    if model.revision is not None and (model.path is None or find_local_folder(model.path) is not None):
        yield "`model.revision` has no effect on a local folder; give a hub id as `model.path`, or leave it out"
    for key in APPROXIMATE:
        if sweep.mode is not SweepMode.approximate and getattr(sweep, key) != getattr(SweepSettings(), key):
            yield f"`sweep.{key}` has no effect with sweep.mode={sweep.mode.value}; add sweep.mode=approximate"
