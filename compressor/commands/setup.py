"""What every command with a model sets up first: the model, its metrics and treatments, and the references."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from compressor.artifacts.answers import Answers
from compressor.artifacts.run_record import ReferenceRecord, RoundRecord
from compressor.commands.early_checks import (
    check_settings,
    list_ineffective,
    list_screens,
    list_unused_options,
    read_memory_limits,
)
from compressor.commands.input_facts import list_input_facts, name_prefixes, name_training_texts, name_windows
from compressor.compression.apply import Treatments
from compressor.compression.calibrator import Calibrator
from compressor.compression.trial_weights import TrialWeights
from compressor.contracts import EstimableMetric, Metric, Prefixes, Problem, Reads
from compressor.contracts.declarations import check_metric, name_option, name_path, read_text
from compressor.contracts.training_requests import TrainingRequests, list_requests
from compressor.data import texts
from compressor.data.reference import build_reference, cache_folder
from compressor.data.text_files import Text
from compressor.errors import naming
from compressor.evaluation.evaluator import Evaluator
from compressor.export import FileSizes
from compressor.models import Model, load_model
from compressor.models.forward import FrozenHead
from compressor.plugins import Plugins
from compressor.progress import Progress, watch
from compressor.resources import MemoryBudget, make_budget, read_processor
from compressor.search.additivity import StartingValues
from compressor.search.applied_plan import AppliedPlan
from compressor.search.estimating import Estimator
from compressor.search.ledger import Ledger
from compressor.search.rounds import Rounds
from compressor.search.session import Session
from compressor.search.top_trials import TopTrials
from compressor.search.trial_scoring import TrialScorer
from compressor.sensitivity.cache_limit import read_limit
from compressor.settings import CalibrationWeights, DataSettings, DataSource, Settings

log = logging.getLogger(__name__)


@dataclass
class RunSetup:
    """A model with its metrics and treatments; `evaluators` are over the prefixes whose reference was built.

    `trial_weights` make the weights of trials. `text` is the natural text of the run; `notes` are for its report.
    `training_windows` `[window, position]` are the texts on which a recovery trains.
    """

    settings: Settings
    model: Model
    metrics: dict[str, Metric]
    treatments: Treatments
    trial_weights: TrialWeights
    memory: MemoryBudget
    text: Text | None = None
    notes: list[str] = field(default_factory=list)
    evaluators: dict[Prefixes, Evaluator] = field(default_factory=dict)
    training_windows: Tensor | None = None

    @property
    def reads_base(self) -> bool:
        """Whether the base's distribution is read, and so must be remembered."""
        weighs = self.settings.data.calibration is CalibrationWeights.margins
        return weighs or any(metric.reads & Reads.BASE for metric in self.metrics.values())

    def take_reference_steps(self, wanted: Sequence[Prefixes]) -> Iterator[None]:
        """Make prefixes, windows of text, and a reference for each of `wanted`; yields 2 + len(wanted) times."""
        settings, model = self.settings, self.model
        text = self.text.content if self.text else None
        made = texts.make_prefixes(model, settings.data, text, Prefixes.PROOF in wanted)
        prefixes = dict(zip(Prefixes, made, strict=True))
        yield
        windows = {}
        for name, metric in self.metrics.items():
            if (request := read_text(metric)) is not None:
                with naming(name_path(f"metric.{name}", metric, request.path)):
                    windows[name] = texts.make_windows(model, request, settings.data, text)
        self.notes += [note for found in windows.values() for note in found.notes]
        yield
        head: FrozenHead | None = None
        for which in wanted:
            reference = build_reference(
                model, prefixes[which], settings.data.continuation_tokens, settings.sweep.batch, cache_folder()
            )
            if self.reads_base:
                reference.remember_distribution(model, head)
                head = reference.head
            if which is Prefixes.SEARCH and settings.data.calibration is CalibrationWeights.margins:
                reference.weigh_by_margins()
            mode, memory = settings.sweep.mode, self.memory
            self.evaluators[which] = Evaluator(
                model, reference, self.metrics, self.trial_weights, windows, mode, memory=memory
            )
            yield

    @cached_property
    def requests(self) -> TrainingRequests | None:
        """What the recovery asks for after the first round; None without a recovery."""
        return None if self.settings.recovery is None else list_requests(self.settings.recovery)

    def make_training_windows(self, sampled: bool) -> None:
        """Make the texts for training if they are `sampled` from the model, which must be the base now, or if not.

        Those of a file need only the tokenizer, so what is wrong with them is told before any work.
        """
        recovery = self.settings.recovery
        if recovery is None or self.requests is None or (wanted := self.requests.texts) is None:
            return
        key = name_option(recovery, "tokens", "TrainingTexts")
        texts.check_training_texts(wanted, self.model.context, key)
        if wanted.are_sampled is sampled:
            with naming(name_path("recovery", recovery, wanted.path)):
                self.training_windows = texts.make_training_texts(self.model, wanted, self.settings.data.seed, key)

    def describe_reference(self, which: Prefixes) -> ReferenceRecord:
        """What is scored on these prefixes."""
        settings, evaluator = self.settings.data, self.evaluators[which]
        reference = evaluator.reference
        return ReferenceRecord(
            source=name_source(settings),
            prefixes=len(reference.tokens),
            prefix_tokens=reference.prefix_tokens,
            continuation_tokens=reference.continuation_tokens,
            near_ties=reference.near_ties,
            mended=reference.mended,
            perplexity_text="; ".join(windows.source for windows in evaluator.windows.values()) or None,
        )

    def open_session(
        self,
        folder: Path,
        progress: Progress,
        on_round: Callable[[int, RoundRecord], None] = lambda number, record: None,
        rounds: list[RoundRecord] | None = None,
        notes: list[str] | None = None,
        answers: Answers | None = None,
    ) -> Session:
        """A search on this model; what it keeps is recorded in `rounds` and `notes`.

        `answers` are those of an interrupted run, and keep the new ones.
        """
        settings, records, remarks = self.settings, [] if rounds is None else rounds, [] if notes is None else notes
        remarks += self.notes
        self.notes = remarks
        ledger = Ledger(settings.data.prefixes)
        stored = answers or Answers()
        scorer = TrialScorer(self.evaluators, self.metrics, ledger, progress, folder, settings.seed, stored)
        calibrator = Calibrator(
            self.model,
            self.treatments,
            lambda: self.evaluators[Prefixes.SEARCH].reference,
            progress,
            ledger.spend,
            self.memory,
        )
        files, starting_values = FileSizes(self.model, settings.export.format), StartingValues(self.metrics)
        applied = AppliedPlan(self.model, self.treatments, calibrator, self.trial_weights, files)
        cache_bytes = read_limit() if settings.sweep.cache else 0
        estimator = Estimator(applied, scorer, starting_values, remarks, cache_bytes)
        problem = self.describe_problem(files)
        for line in list_unused_options(settings.schedule, problem):
            log.warning("%s", line)
        return Session(
            problem=problem,
            applied=applied,
            scorer=scorer,
            estimator=estimator,
            top_trials=TopTrials(scorer, estimator, settings.sweep),
            rounds=Rounds(applied, scorer, starting_values, on_round, records, remarks, progress),
            fuses=settings.fuses,
        )

    def describe_problem(self, files: FileSizes) -> Problem:
        """What a schedule knows of the model."""
        model, data = self.model, self.settings.data
        return Problem(
            components=tuple(model.components.values()),
            offers=self.treatments.offers(model),
            better={name: metric.better for name, metric in self.metrics.items()},
            tokens=data.continuation_tokens,
            seed=self.settings.seed,
            estimable=frozenset(name for name, metric in self.metrics.items() if isinstance(metric, EstimableMetric)),
            prefixes=data.prefixes,
            proof_prefixes=data.proof_prefixes,
            stored_bytes=model.stored_bytes,
            packed=files.packs,
            fixed_bytes=files.rest if files.packs else 0,
        )

    def list_facts(self) -> dict[str, object]:
        """What results depend on besides the configuration: machine, versions, code, weights and texts."""
        model, device = self.model, self.model.device
        return self.list_input_facts() | {
            "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else read_processor(),
            "threads": torch.get_num_threads(),
            "weights": model.content_hash(),
            "dtype": str(model.dtype),
            "texts": self.hash_tokens(),
            "batch": {which.value: evaluator.reference.batch for which, evaluator in self.evaluators.items()},
        }

    def hash_tokens(self) -> dict[str, str]:
        """sha256 of the tokens that the run reads, by the setting from which they come."""
        settings, evaluators = self.settings, [*self.evaluators.values()]
        read = {name_prefixes(settings.data): [evaluator.reference.tokens for evaluator in evaluators]}
        for name, windows in evaluators[0].windows.items():
            read[name_windows(name, self.metrics[name])] = [windows.tokens]
        if settings.recovery is not None and self.training_windows is not None:
            read[name_training_texts(settings.recovery)] = [self.training_windows]
        return {
            name: hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
            for name, parts in read.items()
        }

    def list_input_facts(self) -> dict[str, object]:
        """Those facts that the next start of a multirun knows before it loads the model."""
        return list_input_facts(self.settings, self.metrics, self.model.files_hash)


def name_source(data: DataSettings) -> str:
    """Where the texts come from: a file, a data set, or the base itself."""
    given = {DataSource.text: data.path, DataSource.hf: data.name}.get(data.source)
    return given or "sampled from the base"


def choose_metrics(settings: Settings, plugins: Plugins, needs: Sequence[str]) -> dict[str, Metric]:
    """The configured metrics, those in `needs`, and that by which the approximate mode screens."""
    metrics: dict[str, Metric] = dict(settings.metric)
    for name in [*needs, *list_screens(settings.sweep)]:
        if name not in metrics:
            check_metric(metric := plugins.metrics[name]())
            metrics[name] = metric
    return metrics


def open_setup(settings: Settings, plugins: Plugins, needs: Sequence[str], progress: Progress) -> RunSetup:
    """Load what the settings name, and the metrics in `needs`; raises CompressorError for wrong settings."""
    check_settings(settings, plugins)
    given = read_memory_limits(settings.memory)
    for line in list_ineffective(settings):
        log.warning("%s", line)
    metrics = choose_metrics(settings, plugins, needs)
    text = texts.load_text(settings.data)
    for note in text.notes if text else ():
        progress.say(note)
    model = watch(progress, "loading the model", lambda: load_model(settings.model, settings.components))
    texts.check_settings(settings.data, model.context)
    treatments = Treatments(settings.compressor, plugins.compressors, settings.seed)
    memory = make_budget(model.device, *given)
    trial_weights = TrialWeights(model, treatments, memory.compressed_weights)
    return RunSetup(settings, model, metrics, treatments, trial_weights, memory, text, list(text.notes) if text else [])
