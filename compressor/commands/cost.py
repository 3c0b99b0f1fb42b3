"""What a run will cost in time, memory and disk: told before the search starts, and refused where it cannot fit.

The schedule is run on made-up answers (a dry run), and the work of its requests is added up:

    seconds ≤ passes · seconds of a forward pass + treated weights · seconds to treat a weight

Trials share layers, so the forward passes take less than that. Where a search depends on its answers this is about the
most: every score is twice as good as the one before, so whatever goes on while it gains goes on as long as it may.
"""

import copy
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.artifacts.disk_space import find_room
from compressor.artifacts.folder_check import is_job, name_another, resolve
from compressor.artifacts.run_record import Record, RunCost
from compressor.contracts import (
    Best,
    BestRequest,
    CountRequest,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Offer,
    Plan,
    Prefixes,
    Problem,
    Recovery,
    Schedule,
    ScoreRequest,
    Scores,
    SizeRequest,
    Treatment,
    ValuesRequest,
)
from compressor.errors import CannotFit, CompressorError, PluginError
from compressor.export import holds_exactly
from compressor.models.gradients import PASSES_OF_BACKWARD
from compressor.recovery.processes import join_processes
from compressor.recovery.training_cost import TrainingCost, count_cost
from compressor.report.formatting import format_bytes
from compressor.resources import Memory, measure_folder, read_memory
from compressor.search.dry_run import AdditiveDamage, DryRun
from compressor.search.fused_components import open_dialogue
from compressor.search.ledger import Ledger
from compressor.search.session import Session
from compressor.sensitivity.estimator import KEPT_NUMBERS, count_backward_passes
from compressor.settings import ExportSettings

log = logging.getLogger(__name__)
T = TypeVar("T")
SECONDS = 1.0
"""A dry run that takes longer is stopped."""
ROWS = 8
"""Rows of a component in the dry run, at most: work does not depend on how many rows have an amount of their own."""
LINE = 1000
"""Bytes of a line in scores.jsonl; approximate."""
ANSWER = 500
"""Bytes of the answer of a trial in `state/`, beside a number for each prefix and metric; approximate."""
SMALL_FILES = 1 << 20
"""Bytes of configuration, report, log and W&B's records; approximate."""
CHANGE = 4
"""Bytes of the change of a weight, held in float32."""


@dataclass
class ImprovingDamage:
    """Additive damage that halves with every scored request, while estimates find other components hard each time."""

    turns: Sequence[AdditiveDamage]
    scored: int = 0
    estimated: int = 0

    def of(self, plan: Plan) -> float:
        return self.turns[self.estimated % len(self.turns)].of(plan) * 0.5**self.scored


@dataclass
class WorkCounter:
    """An oracle that adds up the work of requests, and lets a dry run answer them.

    `ledger` counts trials and forward passes. `treated` weights are compressed, `changed` is the most weights that a
    plan changes, `held` the most weight changes that an estimate holds, `kept` the weights that are treated in the end,
    after so many `rounds`.
    """

    problem: Problem
    ledger: Ledger = field(init=False)
    treated: int = 0
    changed: int = 0
    held: int = 0
    kept: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.problem.prefixes)
        self.damage = ImprovingDamage([AdditiveDamage.for_components(self.problem.components, i) for i in range(3)])
        self.dry_run = DryRun(self.problem, made_up=self.damage.of)

    def score(self, request: ScoreRequest) -> tuple[Scores, ...]:
        self._add_trials(request.trials, request)
        return self._scored(self.dry_run.score(request))

    def values(self, request: ValuesRequest) -> tuple[dict[str, NDArray[np.float64]], ...]:
        self._add_trials(request.trials, request)
        return self._scored(self.dry_run.values(request))

    def best(self, request: BestRequest) -> Best:
        """All trials count: how many an approximate search leaves out is not known."""
        self._add_trials(request.trials, ScoreRequest(request.trials, (request.metric,)))
        return self._scored(self.dry_run.best(request))

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        if request.measured:
            trials = request.list_trials()
            self.ledger.trials += len(trials)
            self.ledger.spend(len(trials), request.start, request.stop)
            self._add_plans(trials)
        else:
            passes = count_backward_passes(request, is_base=not self.dry_run.kept)
            self.ledger.spend(passes * PASSES_OF_BACKWARD, request.start, request.stop)
            changes = self._count_options(request.options)
            self.held = max(self.held, sum(changes) if sum(changes) <= KEPT_NUMBERS else max(changes))
            self._add_plans([request.at])
        answer = self.dry_run.estimate(request)
        self.damage.estimated += 1
        return answer

    def sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        self._count_options(request.options)
        return self.dry_run.sizes(request)

    def counts(self, request: CountRequest) -> dict[str, list[int]]:
        return self.dry_run.counts(request)

    def keep(self, request: KeepRequest) -> dict[str, float]:
        self._add_plans([request.plan])
        answer = self.dry_run.keep(request)
        self.kept = self._weigh(self.dry_run.kept)
        self.rounds += 1
        return answer

    def _scored(self, answer: T) -> T:
        self.damage.scored += 1
        return answer

    def _add_trials(self, trials: Sequence[Plan], request: ScoreRequest | ValuesRequest) -> None:
        self.ledger.trials += len(trials)
        if request.prefixes is Prefixes.SEARCH:
            self.ledger.spend(len(trials), request.start, request.stop)
        self._add_plans(trials)

    def _add_plans(self, plans: Iterable[Plan]) -> None:
        for plan in plans:
            weights = self._weigh(plan)
            self.treated += weights
            self.changed = max(self.changed, weights)

    def _count_options(self, options: Mapping[str, Sequence[Treatment | None]]) -> list[int]:
        """The weights of all options of each component; all are compressed."""
        weights = [self.dry_run.components[name].parameters * len(chosen) for name, chosen in options.items()]
        self.treated += sum(weights)
        return weights

    def _weigh(self, plan: Plan) -> int:
        """The weights that a plan treats."""
        return sum(self.dry_run.components[name].parameters for name in plan)


@dataclass(frozen=True)
class CostForecast:
    """What is expected of a search by `session` whose result goes to `folder`, by `export` in the dtype `saved`.

    `is_whole` is False where the dry run was stopped: the work is then too little. `memory` is None where the system
    does not say. `seconds_per_weight` is the time to treat a weight, None where no compressor could be tried.
    `training` is the cost of the recovery after all rounds.
    """

    session: Session
    folder: Path
    work: WorkCounter
    is_whole: bool
    saved: torch.dtype
    export: ExportSettings
    seconds_per_pass: float
    seconds_per_weight: float | None
    memory: Memory | None
    training: TrainingCost | None = None

    @property
    def cost(self) -> RunCost:
        """As it is recorded."""
        work, memory = self.work, self.memory
        batch = self.session.scorer.evaluators[Prefixes.SEARCH].reference.batch
        return RunCost(
            trials=work.ledger.trials,
            passes=work.ledger.passes,
            seconds=work.ledger.passes * self.seconds_per_pass
            + work.treated * (self.seconds_per_weight or 0.0)
            + self.count_training_seconds(),
            memory_bytes=max(memory.peak, memory.used + self.count_memory(batch)) if memory else None,
            disk_bytes=self.count_disk(),
            at_least=not self.is_whole,
        )

    def count_memory(self, sequences: int, dtype: torch.dtype | None = None) -> int:
        """Bytes beside the model: a plan's weights and what they replace, an estimate, or the export.

        An estimate holds changes of weights, and gradients of so many sequences. `dtype` is another one for the model.
        """
        model, work = self.session.model, self.work
        chosen = dtype or model.dtype
        largest = max(component.parameters for component in model.components.values())
        gradients = min(sequences * largest, max(largest, model.base_parameters // 2))
        plan = 2 * chosen.itemsize * work.changed
        estimate = plan + CHANGE * work.held + chosen.itemsize * gradients if work.held else 0
        cast, cut = self.saved != chosen, self.export.cut  # each makes another copy
        export = model.base_parameters * (cast * self.saved.itemsize + cut * chosen.itemsize)
        return max(plan, estimate, export, self.training.memory if self.training else 0)

    def count_disk(self) -> int:
        """The most bytes that the run has on the disk at a time.

        These are all copies of the saved model, the reference, lines and answers of scores, weights and states of
        trainings, and all small files. While a second copy of the model is written, its tensors are also in a file.
        """
        model, work, trials = self.session.model, self.work, self.work.ledger.trials
        tokens = self.session.scorer.evaluators[Prefixes.PROOF].reference.tokens
        every = sum(component.parameters for component in model.components.values())
        wider = self.saved.itemsize - model.stored_dtype.itemsize
        copies, saved = self.export.copies, model.stored_bytes + wider * (work.kept if self.is_whole else every)
        scored = self.session.problem.prefixes * len(self.session.problem.better)
        answers = trials * (LINE + ANSWER + 8 * scored)
        trained = self.training.count_disk(work.rounds) if self.training else 0
        return copies * saved + (copies - 1) * model.stored_bytes + tokens.nbytes + answers + trained + SMALL_FILES

    def count_training_seconds(self) -> float:
        """The time of all recoveries, from that of a forward pass over the search prefixes."""
        if self.training is None or self.training.texts is None:
            return 0.0
        reference = self.session.scorer.evaluators[Prefixes.SEARCH].reference
        seconds_per_token = self.seconds_per_pass / max(1, reference.tokens.numel())
        return self.training.passes * self.training.texts.tokens * seconds_per_token

    def check(self) -> None:
        """Raise CannotFit where the run cannot fit on the disk or into memory; it says what would fit."""
        check_room(self.folder, self.count_disk())
        if self.memory is None or self.session.model.mapped_weights is not None:  # streamed weights leave when needed
            return
        needed, available = self.memory.used + self.count_memory(1), self.memory.available
        if needed > available:
            raise CannotFit(
                f"the run needs {format_bytes(needed)} of memory, and can have {format_bytes(available)}; "
                f"{self._find_fitting(available) or self._describe_lack(needed - available)}"
            )

    def _describe_lack(self, lacking: int) -> str:
        """Raise the setting where that is what limits the run, else free memory."""
        budget = self.session.calibrator.memory
        is_set = self.memory is not None and self.memory.available == budget.device
        return f"{f'raise {budget.setting} by' if is_set and budget.setting else 'free'} {format_bytes(lacking)}"

    def _find_fitting(self, available: int) -> str | None:
        """The setting with which the run would fit into memory; None where there is none."""
        model, half = self.session.model, torch.bfloat16
        assert self.memory is not None
        saved = model.base_parameters * (model.dtype.itemsize - half.itemsize)
        needed = self.memory.used - saved + self.count_memory(1, half)
        if saved <= 0 or needed > available:
            return None
        return f"set model.dtype=bfloat16, which needs {format_bytes(needed)}"


def check_room(folder: Path, needed: int, work: str = "run") -> None:
    """Raise CannotFit unless so many bytes can be written to `folder`; `work` is what needs them."""
    another = name_another(is_job(resolve(folder)))
    try:
        free = find_room(folder, needed)
    except OSError as error:
        raise CannotFit(
            f"the room for the {work} in {folder} cannot be tried: {error.strerror}; {another} on another disk"
        ) from None
    if needed > free:
        raise CannotFit(
            f"the {work} needs {format_bytes(needed)} in {folder}, where {format_bytes(free)} are free; free "
            f"{format_bytes(needed - free)}, or {another} on another disk"
        )


def forecast_cost(
    session: Session,
    schedule: Schedule,
    folder: Path,
    export: ExportSettings,
    seconds_per_pass: float,
    recovery: Recovery | None = None,
) -> CostForecast | None:
    """What to expect of a search by this schedule; None where it cannot be run on made-up answers."""
    work = WorkCounter(fold_rows(session.problem))
    is_whole = count_work(work, schedule, session.fuses)
    if is_whole is None:
        return None
    rounds = range(1, work.rounds + 1)
    training = None if recovery is None else count_cost(recovery, session.model, rounds, join_processes().count)
    saved, seconds_per_weight = try_compressors(session)
    memory = session.calibrator.memory.limit(read_memory(session.model.device))
    return CostForecast(
        session, folder, work, is_whole, saved, export, seconds_per_pass, seconds_per_weight, memory, training
    )


def count_work(work: WorkCounter, schedule: Schedule, fuses: bool, seconds: float = SECONDS) -> bool | None:
    """Add up a whole search; False where it was stopped, None where the schedule cannot take made-up answers."""
    until = time.monotonic() + seconds
    try:
        dialogue, oracle = open_dialogue(copy.deepcopy(schedule), work.problem, work, fuses)
        for _ in dialogue.converse(oracle):
            if time.monotonic() > until:
                return False
    except Exception as error:
        # A schedule may refuse made-up answers, which may be such as no model gives. Anything else is a fault.
        refuses = isinstance(error, CompressorError) and not isinstance(error, PluginError)
        kind = "" if isinstance(error, CompressorError) else f"{type(error).__name__}: "
        level = logging.INFO if refuses else logging.WARNING
        log.log(level, "the cost of schedule `%s` cannot be forecast: %s%s", schedule.name, kind, error)
        return None
    return True


def try_compressors(session: Session) -> tuple[torch.dtype, float | None]:
    """The dtype in which treated weights are saved, and the seconds to treat one weight; the smallest component tells.

    Raises PluginError for a compressor that gives another weight at a second call.

    The dtype is the checkpoint's, unless a compressor gives values that it does not hold. Calibration takes forward
    passes, so a compressor that needs it is tried only where the model and its checkpoint have different dtypes.
    """
    model, problem = session.model, session.problem
    smallest = min(problem.components, key=lambda component: component.parameters)
    saved, rates = model.stored_dtype, list[float]()
    for compressor, offers in problem.offers.items():
        if model.dtype == model.stored_dtype and session.treatments.find_needs([compressor]):
            continue
        plan = {smallest.name: Treatment(compressor, find_middle(offers[smallest.name]))}
        try:
            with session.calibrator.prepared_for(plan):
                began = time.perf_counter()
                dense = session.treatments.compress(model, plan)[smallest.name].dense()
                rates.append((time.perf_counter() - began) / smallest.parameters)
                if not holds_exactly(model.stored_dtype, dense):
                    saved = model.dtype
                session.treatments.check_repeatable(model, {smallest.name: [plan[smallest.name]]})
        except PluginError:
            raise  # the input is real, so the search would fail too
        except CompressorError:
            log.info("the cost of `%s` cannot be tried on this component and amount", compressor)
    return saved, max(rates, default=None)


def fold_rows(problem: Problem) -> Problem:
    """The same problem with fewer, longer rows."""
    components = []
    for component in problem.components:
        rows = gcd(component.shape[0], ROWS)
        components.append(replace(component, shape=(rows, component.parameters // rows)))
    return replace(problem, components=tuple(components))


def find_middle(offer: Offer) -> float:
    """An amount that is offered, in the middle."""
    return (offer.low + offer.high) / 2 if offer.is_range else sorted(offer.levels)[len(offer.levels) // 2]


def sum_up(record: Record, session: Session, folder: Path) -> RunCost:
    """What a run has really cost."""
    memory = read_memory(session.model.device)
    return RunCost(
        trials=sum(step.trials for step in record.rounds),
        passes=sum(step.passes for step in record.rounds),
        seconds=record.phases["search"],
        memory_bytes=memory.peak if memory else None,
        disk_bytes=measure_folder(folder),
    )
