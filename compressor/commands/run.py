"""`compressor run`, from settings to a finished folder: load, reference, search, final score, export, report."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from compressor import export
from compressor.artifacts.answers import Answers
from compressor.artifacts.files import FullDisk, append_json_line
from compressor.artifacts.folder_check import check_content
from compressor.artifacts.folder_lock import held_folder, require_held
from compressor.artifacts.plan_file import list_plan_files, write_plan
from compressor.artifacts.run_files import HYDRA_FOLDER, STATE
from compressor.artifacts.run_folder import claim_files, nothing_left_if_refused, recorded_status, require_own
from compressor.artifacts.run_record import (
    NOT_VERIFIED,
    ExportRecord,
    FileRecord,
    FinalRecord,
    MetricRecord,
    Record,
    RunCostRecord,
    VerificationRecord,
    collect_versions,
    time_phase,
)
from compressor.artifacts.run_state import RunState, open_state
from compressor.commands.cost import check_room, forecast_cost, sum_up
from compressor.commands.early_checks import list_unneeded
from compressor.commands.setup import RunSetup, open_setup
from compressor.commands.stopping import Stopped, stop
from compressor.commands.text_cost import count_texts
from compressor.compression.amounts import describe_components, describe_final
from compressor.contracts import Dialogue, Oracle, Prefixes, Recovery, Score, SizeRequest
from compressor.contracts.declarations import read_ranks
from compressor.contracts.requests import compressors_of
from compressor.contracts.training_requests import TrainingRequests
from compressor.data.reference import write_reference
from compressor.errors import OutputError
from compressor.evaluation.bootstrap import aggregate_each
from compressor.plugins import Plugins
from compressor.progress import Progress, Silent, watch
from compressor.recovery.processes import join_processes
from compressor.recovery.recoverer import Recoverer
from compressor.recovery.trained_weights import TrainedWeights, find_trained
from compressor.recovery.training_means import Stopping, TrainingMeans
from compressor.report import heat_map_svg, write_report
from compressor.report.formatting import describe_expected_cost
from compressor.search.session import Session
from compressor.settings import Settings
from compressor.tracking.run_label import RunLabel
from compressor.tracking.wandb_tracker import Tracker, open_tracker

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One compression run in progress; `execute` does all its phases."""

    settings: Settings
    folder: Path
    tracker: Tracker
    record: Record
    state: RunState | None = None
    progress: Progress = field(default_factory=Silent)
    setup: RunSetup = field(init=False)
    session: Session = field(init=False)
    seconds_per_pass: float = field(init=False)

    def execute(self, plugins: Plugins) -> Record:
        """Do every phase in order. Returns the complete record."""
        with time_phase(self.record, "load"):
            self.load(plugins)
            dialogue, oracle = self.session.begin(self.settings.schedule)
            for line in list_unneeded(self.settings, dialogue.propose()):
                log.warning("%s", line)
            self.answer_sizes(dialogue, oracle)
        with time_phase(self.record, "reference"):
            self.build_references()
            facts = self.setup.list_input_facts()
            self.record.facts = {name: fact for name, fact in facts.items() if name != "versions"}
            if self.state is not None:
                self.state.confirm(self.setup.list_facts())
        with time_phase(self.record, "forecast"):
            self.forecast_cost()
        with time_phase(self.record, "search"):
            with stop.deferred():
                self.session.run(dialogue, oracle)
        with time_phase(self.record, "proof"):
            scores = self.prove()
        with time_phase(self.record, "export"):
            self.finish(scores)
        if self.record.expense:
            self.record.expense.actual = sum_up(self.record, self.session, self.folder)
        self.record.status = "done"
        return self.record

    def load(self, plugins: Plugins) -> None:
        """Load model, metrics, compressors and schedule. Wrong settings are errors here, before any work."""
        settings = self.settings
        if settings.forecast.check:
            log.warning(
                "`forecast.check` has no effect in `compressor run`; leave it out, or use `compressor forecast`"
            )
        self.setup = open_setup(settings, plugins, read_ranks(settings.schedule), self.progress)
        cost = count_texts(self.setup, tuple(Prefixes), trains=True)
        cost.check(self.setup.memory.host)
        self.setup.make_training_windows(sampled=False)
        cost.tell(self.setup.model, self.progress)
        model = self.setup.model
        self.record.notes.extend(model.notes)
        export.check_savable(model)
        if settings.export.gguf:
            export.check_gguf(model)
        self.record.metrics = {name: MetricRecord.of(metric) for name, metric in self.setup.metrics.items()}
        self.record.base = {"parameters": model.base_parameters, "bytes": model.stored_bytes}
        self.session = self.setup.open_session(
            self.folder,
            self.progress,
            self.tracker.log_round,
            self.record.rounds,
            self.record.notes,
            self.state.answers if self.state else None,
        )

    def answer_sizes(self, dialogue: Dialogue, oracle: Oracle) -> None:
        """Answer first questions about sizes, so that a size out of reach is an error before any pass."""
        treatments = self.session.treatments
        while isinstance(request := dialogue.propose(), SizeRequest):
            if treatments.find_needs({*treatments.configured, *compressors_of(request.options)}):
                return  # calibration takes forward passes
            dialogue.tell(watch(self.progress, "counting sizes", partial(request.ask, oracle)))

    def build_references(self) -> None:
        """Make the references of search prefixes and of proof prefixes, and the windows of text."""
        steps = self.progress.track(self.take_reference_steps(), "what the base says", len(Prefixes) + 3)
        deque(steps, maxlen=0)

    def take_reference_steps(self) -> Iterator[None]:
        """Make a reference for each set of prefixes, then score the base itself; yields after each step."""
        yield from self.setup.take_reference_steps(tuple(Prefixes))
        if (recovery := self.settings.recovery) is not None and self.setup.requests is not None:
            self.setup.make_training_windows(sampled=True)
            self.session.rounds.recoverer = self.make_recoverer(recovery, self.setup.requests)
        claim_files(self.folder, ["reference.safetensors"])
        write_reference(self.setup.evaluators[Prefixes.PROOF].reference, self.folder / "reference.safetensors")
        self.record.noise_floor = min(evaluator.reference.noise_floor for evaluator in self.setup.evaluators.values())
        self.record.reference = self.setup.describe_reference(Prefixes.PROOF)
        began = time.perf_counter()
        self.record.base["scores"] = self.session.scorer.summarize(self.session.scorer.score_kept(Prefixes.PROOF))
        proven = self.record.reference.prefixes
        self.seconds_per_pass = (time.perf_counter() - began) / proven * self.settings.data.prefixes
        yield

    def forecast_cost(self) -> None:
        """Predict, show and record what the search will cost; raises ConfigError if the run does not fit."""
        settings = self.settings
        expected = forecast_cost(
            self.session, settings.schedule, self.folder, settings.export, self.seconds_per_pass, settings.recovery
        )
        if expected is None:
            check_room(self.folder, settings.export.copies * self.setup.model.stored_bytes)
        else:
            self.record.expense = RunCostRecord(expected.cost)
            self.progress.say(f"expected cost of the search: {describe_expected_cost(self.record.expense.forecast)}")
            expected.check()

    def make_recoverer(self, recovery: Recovery, requests: TrainingRequests) -> Recoverer:
        """What trains the model after each round."""
        settings, model, applied = self.settings, self.setup.model, self.session.applied
        answers = self.session.scorer.answers
        references = [evaluator.reference for evaluator in self.setup.evaluators.values()]
        means = TrainingMeans(
            model,
            self.setup.training_windows,
            references[0],
            (settings.model, settings.components),
            settings.seed,
            self.progress,
            self.tracker.log_training,
            Stopping(answers.is_stopping, answers.after_block),
            self.setup.memory,
            join_processes(),
        )

        def find() -> TrainedWeights:
            return find_trained(model, applied.kept, applied.packed_bits, applied.quantized)

        return Recoverer(recovery, requests, means, find, references, answers, self.folder / STATE)

    def prove(self) -> dict[str, Score]:
        """Score the result on the proof prefixes, and write a line for each of them to sequences.jsonl."""
        evaluator = self.setup.evaluators[Prefixes.PROOF]
        score = partial(self.session.scorer.score_kept, Prefixes.PROOF)
        values = watch(self.progress, "scoring the result on fresh prefixes", score)
        columns = {
            name: aggregate_each(metric, values[name])
            for name, metric in self.setup.metrics.items()
            if metric.text() is None
        }
        claim_files(self.folder, ["sequences.jsonl"])
        for index in range(len(evaluator.reference.tokens)):
            line = {"index": index} | {name: float(values[index]) for name, values in columns.items()}
            append_json_line(self.folder / "sequences.jsonl", line)
        return self.session.scorer.summarize(values)

    def finish(self, scores: dict[str, Score]) -> None:
        """Write the plan and the model, and complete the record."""
        require_held(self.folder)
        applied = self.session.applied
        claim_files(self.folder, list_plan_files(applied.kept))
        write_plan(applied.kept, self.folder / "plan.json")
        require_own(self.folder)
        exported, verification = self.ship()
        self.record.notes.extend(exported.notes)
        self.record.components = describe_components(self.setup.model, applied.kept, applied.packed_bits, exported.bits)
        self.record.final = describe_final(self.record.components, exported.bytes, scores)
        self.measure_zeros(self.record.final, exported)
        self.record.export = ExportRecord(exported.format, str(exported.dtype), len(exported.packed), verification)
        if self.settings.export.gguf:
            self.record.export.gguf = self.write_gguf()

    def measure_zeros(self, final: FinalRecord, exported: export.Exported) -> None:
        """What the saved model would take if its zeros took less; nothing for a model that has hardly any.

        Nothing for one that is cut either: its zeros are not those of the scored matrices.
        """
        if exported.is_cut:
            return
        size = export.count_bitmask_bytes(exported.bytes, self.record.components, exported.packed)
        if size < exported.bytes:
            final.bitmask_bytes = size
            measure = partial(export.measure_zstd, exported.path)
            final.zstd_bytes = watch(self.progress, "measuring what zstd would save", measure)

    def ship(self) -> tuple[export.Exported, VerificationRecord | None]:
        """Save the model and check it. If packed weights are not what was scored, `auto` saves all weights dense.

        Raises OutputError if the files are larger than the schedule allows.
        """
        form, most = self.settings.export.format, self.session.rounds.most_bytes
        exported = self.save(form)
        if most is not None and exported.bytes > most:
            raise OutputError(
                f"the saved model takes {exported.bytes} bytes, more than the {most} of `schedule.bytes` "
                "or `.size`; lower that"
            )
        try:
            return exported, self.verify(exported)
        except OutputError as error:
            if form != export.AUTO or not exported.packed or most is not None:
                raise
            self.record.notes.append(f"All weights are saved dense, because packed weights could not be used: {error}.")
        exported = self.save(export.DENSE)
        return exported, self.verify(exported)

    def save(self, form: str) -> export.Exported:
        """Save the model in a format."""
        provenance = {"config": self.record.config, "versions": self.record.versions}
        model, applied = self.setup.model, self.session.applied
        write = partial(export.save, form, model, self.folder / "model", applied.kept, provenance)
        cut = self.settings.export.cut
        return watch(self.progress, "saving the model", lambda: write(applied.list_quantized(), cut))

    def write_gguf(self) -> FileRecord:
        """Write model.gguf and check it; raises OutputError if it is not what was scored."""
        path, quantized = self.folder / "model.gguf", self.session.applied.list_quantized()
        claim_files(self.folder, [path.name])
        exported = watch(
            self.progress, "writing model.gguf", lambda: export.save_gguf(self.setup.model, path, quantized)
        )
        self.record.notes.extend(exported.notes)
        return FileRecord(exported.bytes, len(exported.packed), self.verify(exported))

    def verify(self, exported: export.Exported) -> VerificationRecord | None:
        """Load the saved model and compare, if `export.verify`; raises OutputError if it is not what was scored.

        A check that could not be made is a warning: the run goes on, and the record says so.
        """
        if not self.settings.export.verify:
            return None
        reference, trust = self.setup.evaluators[Prefixes.PROOF].reference, self.settings.model.trust_remote_code
        verification = watch(
            self.progress,
            "checking the saved model",
            lambda: export.verify(exported, self.setup.model, reference.tokens, reference.prefix_tokens, trust),
        )
        is_whole = not export.list_untransformed(self.setup.model, exported)
        sentence = export.describe_verification(exported.title, verification, is_whole)
        if verification.state == NOT_VERIFIED:
            log.warning("%s", sentence)
        self.record.notes.append(sentence)
        return verification


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Inside, the error of a full disk says that the run in `folder` can go on, if it was started by a command."""
    try:
        yield
    except FullDisk as error:
        if (folder / HYDRA_FOLDER).is_dir():
            error.folder = folder
        raise


def execute(
    settings: Settings,
    plugins: Plugins,
    folder: Path,
    config: dict[str, Any],
    command: str,
    progress: Progress | None = None,
    label: RunLabel | None = None,
    on_begin: Callable[[], None] | None = None,
) -> Record:
    """Run `settings` and write everything to `folder`. After an error the report says `failed`.

    `config` is what to record as the run's configuration, `command` how it was started. `label` names the run in a
    tracker; without one, the schedule does. `on_begin` is called when the run was not refused.
    """
    check_content(folder)
    with held_folder(folder), nothing_left_if_refused(folder), naming_folder(folder):
        answers = Answers(is_stopping=lambda: stop.is_requested, after_block=stop.check)
        state = open_state(folder, config, command, settings.resume.accept, answers)
        record = Record(status="running", config=config, versions=collect_versions(), command=state.command)
        with recorded_status(folder, state.command):
            try:
                state.begin()
                if on_begin is not None:
                    on_begin()
                label, progress = label or RunLabel(settings.schedule.name), progress or Silent()
                if answers.found:
                    progress.say(f"going on with {len(answers.found)} answers of the interrupted run in {folder}")
                tracked = config | {"versions": record.versions}
                with open_tracker(settings.tracking, folder, tracked, label, state.tracker_id) as tracker:
                    Run(settings, folder, tracker, record, state, progress).execute(plugins)
                    require_held(folder)
                    write_report(record, folder)
                    tracker.log_final(record, partial(heat_map_svg, record.components), folder)
            except Exception as error:
                record.status, record.error = "failed", str(error) or type(error).__name__
                with suppress(OutputError):  # a full disk, or a folder that is gone; the first failure says more
                    require_held(folder)
                    write_report(record, folder)
                raise
            except Stopped as error:
                error.folder = folder
                raise
            if not settings.resume.keep:
                state.remove()
    if tracker.sync_command:
        progress.say(f"W&B: the run is stored offline; upload it with: {tracker.sync_command}")
    return record
