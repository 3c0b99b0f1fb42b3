"""Checks of settings that need neither the model nor torch, so that a mistake is told within a second."""

import importlib.util
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields

from compressor.artifacts.run_state import EVERYTHING, FACTS, UNKNOWN
from compressor.contracts import Compressor, EstimableMetric, KeepRequest, Metric, Problem, Recovery, Schedule
from compressor.contracts.declarations import (
    check_compressor,
    check_metric,
    check_recovery,
    check_schedule,
    name_option,
    name_path,
    read_file_limit,
    read_ranks,
    read_text,
    read_unused,
    require_kind,
)
from compressor.contracts.training_requests import list_requests
from compressor.data.text_files import find_file
from compressor.errors import ConfigError, DataError, naming, suggest
from compressor.export_formats import check_format, check_packs
from compressor.model_paths import find_local_folder
from compressor.plugins import Plugins
from compressor.resources import parse_bytes
from compressor.sensitivity.cache_limit import read_limit
from compressor.settings import (
    CalibrationWeights,
    DataSettings,
    DataSource,
    MemorySettings,
    Settings,
    SweepMode,
    SweepSettings,
    TrackingBackend,
    TrackingSettings,
    compile_pattern,
)

LARGEST_SEED, LARGEST = 2**63 - 1, 2**31 - 1
BYTES = "bytes"
"""The last part of a key of a plugin whose value is a number of bytes, which may be as large as a seed."""
SOURCES = {"path": DataSource.text, "name": DataSource.hf, "subset": DataSource.hf}
"""Keys of `data` -> the only source that reads them."""
APPROXIMATE = ("screen", "delta", "lazy", "tolerance", "audit")
"""Keys of `sweep` that only the approximate mode reads."""
DEFAULT_COMPRESSOR = "magnitude"
"""The compressor of conf/config.yaml, which is configured where nobody chooses one."""
SECOND_MOMENTS = frozenset({"hessian", "second_moment"})
"""Calibration data that `data.calibration` weights."""
SIZE_OPTIONS = ("size", "bytes", "bits")
"""Options of schedules that limit how much the compressed weights may take."""
TARGETS = "targets"
"""The option of a schedule for the mean amounts to reach."""


def check_settings(settings: Settings, plugins: Plugins) -> None:
    """Raise CompressorError for what no command can work with: numbers, names, options, and files that are missing."""
    check_numbers(settings)
    check_source(settings.data)
    if settings.model.path is not None:
        find_local_folder(settings.model.path)
    for name in ("include", "exclude"):
        for pattern in getattr(settings.components, name):
            compile_pattern(f"components.{name}", pattern)
    read_memory_limits(settings.memory)
    check_format(settings.export.format, settings.export.gguf, settings.export.cut)
    check_screen(settings.sweep, plugins.metrics)
    if settings.sweep.cache:
        read_limit()
    check_plugins(settings, plugins)
    check_size(settings)
    known = {EVERYTHING, UNKNOWN, *FACTS, *(field.name for field in fields(settings))}
    for name in settings.resume.accept:
        if (first := name.partition(".")[0]) not in known:
            raise ConfigError(f"`resume.accept`: nothing is called `{name}`; {suggest(first, known)}")


def check_plugins(settings: Settings, plugins: Plugins) -> None:
    """Raise CompressorError for options of metrics, compressors and the schedule that suit no model."""
    for name, metric in settings.metric.items():
        check_metric(metric)
        metric.check_options()
        if (text := read_text(metric)) is not None and text.path is not None:
            with naming(name_path(f"metric.{name}", metric, text.path)):
                find_file(text.path)
    for compressor in settings.compressor.values():
        check_compressor(compressor)
        compressor.check_options()
    schedule = settings.schedule
    check_schedule(schedule)
    for name in read_ranks(schedule):
        if name not in plugins.metrics and name not in settings.metric:
            raise ConfigError(
                f"schedule `{schedule.name}` ranks by the metric `{name}`: {plugins.metrics.unknown(name)}"
            )
    if read_file_limit(schedule):
        limit = next((name for name in SIZE_OPTIONS if getattr(schedule, name, None) is not None), None)
        check_packs(settings.export.format, f"schedule.{limit}" if limit else f"schedule={schedule.name}")
    schedule.check_options(settings.compressor, plugins.metrics)
    if (recovery := settings.recovery) is not None:
        require_kind(recovery, "recovery", Recovery)
        if settings.model.stream:
            raise ConfigError(
                f"recovery `{recovery.name}` needs the weights in memory, and `model.stream` leaves them on disk; "
                "leave one of the two out"
            )
        recovery.check_options()
        check_recovery(recovery)
        texts = list_requests(recovery).texts
        if texts is not None and texts.path is not None:
            with naming(name_path("recovery", recovery, texts.path)):
                find_file(texts.path)
        if texts is not None and texts.dataset is not None:
            require_datasets(name_option(recovery, "dataset", "TrainingTexts"))


def check_screen(sweep: SweepSettings, metrics: Mapping[str, type[Metric]]) -> None:
    """Raise ConfigError if the metric of `sweep.screen` cannot be estimated."""
    if sweep.screen is None:
        return
    known = [name for name, metric in metrics.items() if issubclass(metric, EstimableMetric)]
    if sweep.screen not in metrics:
        raise ConfigError(f"unknown metric `{sweep.screen}` in `sweep.screen`; {suggest(sweep.screen, known)}")
    if sweep.screen not in known:
        raise ConfigError(
            f"`sweep.screen` must be a metric that can be estimated, got `{sweep.screen}`; {suggest('', known)}"
        )


def list_screens(sweep: SweepSettings) -> list[str]:
    """The metric that the approximate mode screens by, as a list; empty without one."""
    return [sweep.screen] if sweep.screen is not None and sweep.mode is SweepMode.approximate else []


def read_memory_limits(memory: MemorySettings) -> tuple[int | None, int | None]:
    """`memory.device` and `memory.host` in bytes; raises ConfigError for what is no size."""
    return parse_bytes("memory.device", memory.device), parse_bytes("memory.host", memory.host)


def check_forecast(settings: Settings) -> None:
    """Raise ConfigError for what only a forecast cannot work with."""
    check, schedule = settings.forecast.check, settings.schedule
    if check < 0:
        raise ConfigError(f"`forecast.check` must not be negative, got {check}; 0 checks nothing")
    for name in SIZE_OPTIONS:
        if (value := getattr(schedule, name, None)) is not None:
            raise ConfigError(
                f"a forecast has a plan for every size, got `schedule.{name}={value}`; leave that out, or give "
                "mean amounts by schedule.targets"
            )
    if not hasattr(schedule, TARGETS):
        raise ConfigError(
            f"schedule `{schedule.name}` has no option `schedule.{TARGETS}`, which a forecast needs; leave "
            "`schedule` out, or choose one that has it"
        )


def require_datasets(setting: str) -> None:
    """Raise DataError where a setting needs the package datasets, and it is not installed."""
    if importlib.util.find_spec("datasets") is None:
        raise DataError(f"{setting} needs the package datasets; install it: pip install 'compressor[data]'")


def check_source(data: DataSettings) -> None:
    """Raise CompressorError where the source of texts lacks its name, or its file."""
    if data.source is DataSource.hf and not data.name:
        raise ConfigError(
            "`data=hf` needs `data.name`, got none; give the data set's name, such as Salesforce/wikitext"
        )
    if data.source is DataSource.hf:
        require_datasets("`data=hf`")
    if data.source is DataSource.text:
        if not data.path:
            raise ConfigError("`data=text` needs `data.path`, got none; give a file with text, or with rows of it")
        with naming("data.path"):
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


def check_size(settings: Settings) -> None:
    """Raise ConfigError for a number, also of a plugin, that is infinite, no number, or too large for a machine."""
    for key, value in list_numbers(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"`{key}` must be finite, got {value:g}; give a number, or leave it out")
        largest = LARGEST_SEED if key.rpartition(".")[2] in ("seed", BYTES) else LARGEST
        if isinstance(value, int) and value > largest:
            raise ConfigError(f"`{key}` must be at most {largest}, got {value!s:.60}; lower it")


def list_numbers(settings: Settings) -> Iterator[tuple[str, int | float]]:
    """Key and value of every number in the settings and in the options of plugins, also in lists, without `memory`."""
    groups = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "memory"}
    for group in ("metric", "compressor"):
        groups |= {f"{group}.{name}": plugin for name, plugin in groups.pop(group).items()}
    yield "seed", groups.pop("seed")
    for group, options in groups.items():
        for field in () if options is None else fields(options):
            value = getattr(options, field.name)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int | float) and not isinstance(one, bool):
                    yield f"{group}.{field.name}", one


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
    weighs = data.calibration is not CalibrationWeights.tokens and settings.recovery is None
    if weighs and not settings.schedule.repeats and not any(map(weighs_tokens, settings.compressor.values())):
        yield (
            "`data.calibration` has no effect on compressors that need no second moments of inputs; add one that does, "
            "such as gptq, or leave it out"
        )
    if data.column is not None and data.source is DataSource.self:
        yield "`data.column` has no effect with data=self; add data=text or data=hf, or leave it out"
    if model.revision is not None and (model.path is None or find_local_folder(model.path) is not None):
        yield "`model.revision` has no effect on a local folder; give a hub id as `model.path`, or leave it out"
    for key in APPROXIMATE:
        if sweep.mode is not SweepMode.approximate and getattr(sweep, key) != getattr(SweepSettings(), key):
            yield f"`sweep.{key}` has no effect with sweep.mode={sweep.mode.value}; add sweep.mode=approximate"
    for key in ("mode", "project"):
        default = getattr(TrackingSettings(), key)
        if settings.tracking.backend is TrackingBackend.none and getattr(settings.tracking, key) != default:
            yield f"`tracking.{key}` has no effect with tracking=none; add tracking=wandb, or leave it out"
    for name, compressor in settings.compressor.items():
        for option, reason in read_unused(compressor, compressor.list_unused()).items():
            if getattr(compressor, option) != getattr(type(compressor)(), option):
                yield f"`compressor.{name}.{option}` has no effect with `{reason}`; leave one of the two out"
    if (recovery := settings.recovery) is not None:
        for option, reason in read_unused(recovery, recovery.list_unused()).items():
            if getattr(recovery, option) != getattr(type(recovery)(), option):
                yield f"`recovery.{option}` has no effect with `recovery.{reason}` as it is; leave it out"


def weighs_tokens(compressor: Compressor) -> bool:
    """Whether it needs data that `data.calibration` weights; what is no set of names is refused later."""
    return isinstance(compressor.needs, Set) and not SECOND_MOMENTS.isdisjoint(compressor.needs)


def list_unused_options(schedule: Schedule, problem: Problem) -> Iterator[str]:
    """A line for each option of the schedule that was given and has no effect on this model."""
    for option, reason in read_unused(schedule, schedule.list_unused(problem)).items():
        if getattr(schedule, option) != getattr(type(schedule)(), option):
            yield f"`schedule.{option}` has no effect with {reason}; leave it out"


def list_unneeded(settings: Settings, request: object) -> Iterator[str]:
    """A line for each setting that was given and has no effect, because the first `request` of the search is the last.

    So it is with a plan from a file: nothing is compared, and most treatments bring their own options.
    """
    if not (isinstance(request, KeepRequest) and request.last):
        return
    chosen, treatments = f"schedule={settings.schedule.name}", request.plan.values()
    configured = {treatment.compressor for treatment in treatments if not treatment.options}
    is_default = [*settings.compressor] == [DEFAULT_COMPRESSOR]
    is_default = is_default and all(compressor == type(compressor)() for compressor in settings.compressor.values())
    for name in () if is_default else [name for name in settings.compressor if name not in configured]:
        named = any(treatment.compressor == name for treatment in treatments)
        reason = f"brings its own options of {name}" if named else f"does not treat anything by {name}"
        yield f"`compressor={name}` has no effect with {chosen}, whose plan {reason}; leave it out"
    if settings.sweep.mode is SweepMode.approximate:
        yield f"`sweep.mode=approximate` has no effect with {chosen}, which compares no trials; leave it out"
    if settings.components.fuse and settings.schedule.repeats:
        yield f"`components.fuse` has no effect with {chosen}, which treats each matrix as its plan says; leave it out"
