"""One run from settings to a finished folder: load, reference, search, proof on fresh prefixes, export, report."""

import importlib.metadata
import platform
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor import data, export
from compressor.accounting import describe_components, describe_final
from compressor.contracts import Dialogue, Metric, Prefixes, Reads
from compressor.errors import CompressorError, ConfigError, OutputError
from compressor.files import append_json_line, check_writable
from compressor.models import Model, load_model
from compressor.plans import write_plan
from compressor.plugins import Plugins
from compressor.progress import Progress, Silent, watch
from compressor.record import MetricRecord, Record, ReferenceRecord
from compressor.reference import Reference, build_reference, cache_folder, write_reference
from compressor.report import heat_map_svg, read_report, write_report
from compressor.search import Search
from compressor.settings import Settings
from compressor.statistics import values_per_sequence
from compressor.sweep import Sweep
from compressor.tracking import Tracker, open_tracker
from compressor.treatments import Treatments
from compressor.values import Score


@dataclass
class Run:
    """One compression run in progress; `execute` drives it from settings to a finished record."""

    settings: Settings
    plugins: Plugins
    folder: Path
    tracker: Tracker
    record: Record
    progress: Progress = field(default_factory=Silent)
    model: Model = field(init=False)
    metrics: dict[str, Metric] = field(init=False)
    sweeps: dict[Prefixes, Sweep] = field(init=False, default_factory=dict)
    search: Search = field(init=False)
    dialogue: Dialogue = field(init=False)

    def execute(self) -> Record:
        """Every phase in order; the record is complete afterwards."""
        with self.phase("load"):
            self.load()
        with self.phase("reference"):
            self.build_references()
        with self.phase("search"):
            self.search.run(self.dialogue)
        with self.phase("proof"):
            scores = self.prove()
        with self.phase("export"):
            self.finish(scores)
        self.record.status = "done"
        return self.record

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; wall-clock seconds go into the record."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.record.phases[name] = time.monotonic() - began
            self.record.seconds = sum(self.record.phases.values())

    def load(self) -> None:
        """Model, metrics, compressors and schedule; whatever settings get wrong is found here, before any work."""
        settings = self.settings
        export.check_format(settings.export.format)
        check_numbers(settings)
        self.metrics = dict(settings.metric)
        for name in settings.schedule.ranks_by():
            self.metrics.setdefault(name, self.plugins.metrics[name]())
        self.record.metrics = {name: MetricRecord.of(metric) for name, metric in self.metrics.items()}
        self.model = watch(self.progress, "loading the model", lambda: load_model(settings.model, settings.components))
        data.check_settings(settings.data, self.model.context)
        self.record.base = {"parameters": self.model.base_parameters, "bytes": self.model.stored_bytes}
        self.search = Search(
            model=self.model,
            metrics=self.metrics,
            treatments=Treatments(settings.compressor, self.plugins.compressors, settings.seed),
            sweeps=self.sweeps,
            folder=self.folder,
            progress=self.progress,
            on_round=self.tracker.log_round,
            tokens=settings.data.continuation_tokens,
            prefixes=settings.data.prefixes,
            seed=settings.seed,
            rounds=self.record.rounds,
        )
        self.dialogue = self.search.begin(settings.schedule)

    def build_references(self) -> None:
        """What the base says after the prefixes to search on and after those to prove on, and the text to read."""
        steps = self.progress.track(self.take_reference_steps(), "what the base says", len(Prefixes) + 3)
        deque(steps, maxlen=0)

    def take_reference_steps(self) -> Iterator[None]:
        """Prefixes, windows of text, a reference each, the base's own scores; yields after each."""
        settings, model = self.settings, self.model
        text = data.load_text(settings.data)
        prefixes = dict(zip(Prefixes, data.make_prefixes(model, settings.data, text), strict=True))
        yield
        windows = {
            name: data.make_windows(model, request, settings.data, text)
            for name, metric in self.metrics.items()
            if (request := metric.text()) is not None
        }
        yield
        for which, rows in prefixes.items():
            reference = build_reference(
                model, rows, settings.data.continuation_tokens, settings.sweep.batch, cache_folder()
            )
            if any(metric.reads & Reads.BASE for metric in self.metrics.values()):
                reference.remember_distribution(model)
            self.sweeps[which] = Sweep(model, reference, self.metrics, windows)
            yield
        self.describe_reference(self.sweeps[Prefixes.PROOF].reference, "; ".join(w.source for w in windows.values()))
        self.record.base["scores"] = self.search.summarize(self.sweeps[Prefixes.PROOF].score_current())
        yield

    def describe_reference(self, proof: Reference, text: str) -> None:
        settings = self.settings.data
        write_reference(proof, self.folder / "reference.safetensors")
        self.record.noise_floor = min(sweep.reference.noise_floor for sweep in self.sweeps.values())
        self.record.reference = ReferenceRecord(
            source=settings.path or settings.name or "sampled from the base",
            prefixes=len(proof.tokens),
            prefix_tokens=proof.prefix_tokens,
            continuation_tokens=proof.continuation_tokens,
            near_ties=proof.near_ties,
            mended=proof.mended,
            perplexity_text=text or None,
        )

    def prove(self) -> dict[str, Score]:
        """Score the result on fresh prefixes; one line a prefix in sequences.jsonl."""
        sweep = self.sweeps[Prefixes.PROOF]
        statistics = watch(self.progress, "scoring the result on fresh prefixes", sweep.score_current)
        columns = {
            name: values_per_sequence(metric, statistics[name])
            for name, metric in self.metrics.items()
            if metric.text() is None
        }
        for index in range(len(sweep.reference.tokens)):
            line = {"index": index} | {name: float(values[index]) for name, values in columns.items()}
            append_json_line(self.folder / "sequences.jsonl", line)
        return self.search.summarize(statistics)

    def finish(self, scores: dict[str, Score]) -> None:
        """Write the plan and the model, and complete the record."""
        search = self.search
        write_plan(search.kept, self.folder / "plan.json")
        provenance = {"config": self.record.config, "versions": self.record.versions}
        folder = self.folder / "model"
        exported = watch(
            self.progress,
            "saving the model",
            lambda: export.save_dense(self.model, folder, search.kept, provenance),
        )
        self.record.components = describe_components(self.model, search.kept, search.packed_bits, exported.bits)
        self.record.final = describe_final(self.record.components, exported.bytes, scores)
        if exported.dtype != self.model.stored_dtype:
            self.record.notes.append(
                f"The model is saved in {exported.dtype}: {self.model.stored_dtype} does not hold its values exactly."
            )


def check_numbers(settings: Settings) -> None:
    """Raise ConfigError for numbers that no run can work with."""
    for key, value in (("seed", settings.seed), ("data.seed", settings.data.seed)):
        if value < 0:
            raise ConfigError(f"`{key}` must not be negative, got {value}; choose 0 or more")
    if settings.sweep.batch is not None and settings.sweep.batch < 1:
        raise ConfigError(f"`sweep.batch` must be at least 1, got {settings.sweep.batch}; raise it or leave it out")


def collect_versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    names = ("compressor", "torch", "transformers", "numpy", "pluggy", "hydra-core", "safetensors", "wandb")
    versions = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def clear_folder(folder: Path) -> None:
    """Refuse a folder with a finished run; remove the lines that a failed one left."""
    if (folder / "report.json").exists() and read_report(folder).status == "done":
        raise OutputError(f"{folder} already holds a finished run; choose another hydra.run.dir or remove it")
    for name in ("scores.jsonl", "sequences.jsonl"):
        (folder / name).unlink(missing_ok=True)


def execute(
    settings: Settings,
    plugins: Plugins,
    folder: Path,
    config: dict[str, Any],
    command: str,
    progress: Progress | None = None,
) -> Record:
    """Run `settings` and leave everything in `folder`; a CompressorError leaves a failed report there and goes on up.

    `config` is what to record as the run's configuration, `command` how it was started.
    """
    check_writable(folder)
    clear_folder(folder)
    record = Record(status="running", config=config, versions=collect_versions(), command=command)
    try:
        tracked = config | {"versions": record.versions}
        with open_tracker(settings.tracking, folder, tracked, settings.schedule.name) as tracker:
            Run(settings, plugins, folder, tracker, record, progress or Silent()).execute()
            write_report(record, folder)
            tracker.log_final(record, heat_map_svg(record.components), folder / "plan.json")
    except CompressorError as error:
        record.status, record.error = "failed", str(error)
        write_report(record, folder)
        raise
    return record
