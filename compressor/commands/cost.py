"""What a run will cost, before its search starts: it is rehearsed, two real trials are timed, and sizes are added up.

    seconds = runs · seconds of a forward pass + treated weights · seconds to treat one

What is multiplied is counted by `compressor.search.workload`, the two rates come from the trials.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.artifacts.run_record import Expense, Record
from compressor.compression.apply import make_replacement
from compressor.contracts import Offer, Plan, Prefixes, Problem, Schedule, Treatment
from compressor.errors import CompressorError, ConfigError
from compressor.export import holds_exactly
from compressor.models import Replacement
from compressor.models.components import find_layers
from compressor.progress import watch
from compressor.report.formatting import format_bytes
from compressor.resources import Memory, measure_folder, read_free_disk, read_memory
from compressor.search.session import Search
from compressor.search.workload import Tally, Work, fold_rows, rehearse
from compressor.settings import SweepMode

log = logging.getLogger(__name__)
WORTH = 20
"""Forward passes; a shorter search is over before it helps to know how long it takes."""
SHARE = 0.05
"""The most that a probe may cost of the search."""
PROBE = 3
"""Forward passes of a probe: what its trials share, the one that starts at the first layer, and the rest."""
LINE, TREATMENT = 400, 90
"""Bytes of a line in scores.jsonl, and of each treatment that it names; about."""
CHANGE = 4
"""Bytes of the change of a weight, held in float32."""


@dataclass(frozen=True)
class Rates:
    """Seconds of a forward pass over all search prefixes, and of the treatment of one weight."""

    run: float
    weight: float


@dataclass(frozen=True)
class Outlook:
    """What is expected of a run of `search` whose result goes to `folder`.

    What is treated is saved in the dtype `saved`, and the model `copies` times. `rates` are None where no probe was
    worth its time, `memory` where the system does not say.
    """

    search: Search
    folder: Path
    work: Work
    saved: torch.dtype
    rates: Rates | None
    memory: Memory | None
    copies: int = 1

    @property
    def expense(self) -> Expense:
        """As it is recorded."""
        work, rates, memory = self.work, self.rates, self.memory
        batch = self.search.evaluators[Prefixes.SEARCH].reference.batch
        return Expense(
            trials=work.trials,
            passes=work.passes,
            seconds=work.runs * rates.run + work.treated * rates.weight if rates else None,
            memory_bytes=max(memory.peak, memory.used + self.count_memory(batch)) if memory else None,
            disk_bytes=self.count_disk(),
            at_least=not work.whole,
        )

    def count_memory(self, sequences: int, dtype: torch.dtype | None = None) -> int:
        """Bytes beside the model: weights of a trial and what they replace, or what a walk back holds, or the export.

        A walk back holds changes of weights, and gradients of so many sequences. `dtype` is another one for the model.
        """
        model, work = self.search.model, self.work
        chosen = dtype or model.dtype
        largest = max(component.parameters for component in model.components.values())
        gradients = min(sequences * largest, max(largest, model.base_parameters // 2))
        walk = CHANGE * work.held + chosen.itemsize * gradients if work.held else 0
        export = model.base_parameters * self.saved.itemsize if self.saved != chosen else 0
        return max(2 * chosen.itemsize * work.changed, walk, export)

    def count_disk(self) -> int:
        """Bytes of all copies of the saved model, of the reference and of the lines of scores."""
        model, tokens = self.search.model, self.search.evaluators[Prefixes.PROOF].reference.tokens
        every = sum(component.parameters for component in model.components.values())
        wider = self.saved.itemsize - model.stored_dtype.itemsize
        saved = model.stored_bytes + wider * (self.work.kept if self.work.whole else every)
        return self.copies * saved + tokens.nbytes + LINE * self.work.lines + TREATMENT * self.work.treatments

    def check(self) -> None:
        """Raise ConfigError where the run cannot fit on the disk or into memory; it says what would."""
        needed, free = self.count_disk(), read_free_disk(self.folder)
        if needed > free:
            raise ConfigError(
                f"the run leaves {format_bytes(needed)} in {self.folder}, where {format_bytes(free)} are free; free "
                f"{format_bytes(needed - free)}, or choose another disk with hydra.run.dir=DIR"
            )
        if self.memory is None:
            return
        needed, available = self.memory.used + self.count_memory(1), self.memory.available
        if (
            needed > available and self.search.model.mapped_weights is None
        ):  # what is streamed leaves when memory is short
            raise ConfigError(
                f"the run needs {format_bytes(needed)} of memory, and can have {format_bytes(available)}; "
                f"{self._find_fitting(available) or f'free {format_bytes(needed - available)}'}"
            )

    def _find_fitting(self, available: int) -> str | None:
        """The setting with which the run would fit into memory; None where there is none."""
        model, half = self.search.model, torch.bfloat16
        assert self.memory is not None
        saved = model.base_parameters * (model.dtype.itemsize - half.itemsize)
        needed = self.memory.used - saved + self.count_memory(1, half)
        if saved <= 0 or needed > available:
            return None
        return f"set model.dtype=bfloat16, which needs {format_bytes(needed)}"


def look_ahead(search: Search, schedule: Schedule, folder: Path, copies: int = 1) -> Outlook | None:
    """What to expect of a search by this schedule whose result is saved in so many forms; None without a rehearsal."""
    layers = len(find_layers(search.model.network)[1])
    shares = search.evaluators[Prefixes.SEARCH].mode is not SweepMode.plain
    tally = Tally(fold_rows(search.describe_problem()), layers=layers, shares=shares)
    if not rehearse(tally, schedule):
        return None
    rates = probe(search, tuple(schedule.ranks_by()) or tuple(search.metrics), tally)
    saved = find_saved_dtype(search)
    return Outlook(search, folder, tally.work, saved, rates, read_memory(search.model.device), copies)


def find_saved_dtype(search: Search) -> torch.dtype:
    """The checkpoint's own, unless a compressor gives values that it does not hold; a small component tells."""
    model, problem = search.model, search.describe_problem()
    smallest = min(problem.components, key=lambda component: component.parameters).name
    for compressor, offers in problem.offers.items() if model.dtype != model.stored_dtype else ():
        with suppress(CompressorError):
            plan = {smallest: Treatment(compressor, find_middle(offers[smallest]))}
            with search.calibrated(plan):
                products = make_replacements(search, plan)
            if not holds_exactly(model.stored_dtype, products[smallest].weight):
                return model.dtype
    return model.stored_dtype


def probe(search: Search, names: Sequence[str], tally: Tally) -> Rates | None:
    """Rates from two real trials, scored by the metrics `names`; None where that costs too much or cannot be done."""
    evaluator, work = search.evaluators[Prefixes.SEARCH], tally.work
    reads_text = any(search.metrics[name].text() is not None for name in names)
    stop = search.prefixes if reads_text else min(search.prefixes, evaluator.reference.batch)
    if work.runs < WORTH or PROBE * stop / search.prefixes > SHARE * work.runs:
        return None
    try:
        return watch(search.progress, "timing two trials", lambda: time_trials(search, names, stop, tally))
    except CompressorError as error:  # perhaps of an amount that the search would never try
        log.info("no forecast of time: %s", error)
        return None


def time_trials(search: Search, names: Sequence[str], stop: int, tally: Tally) -> Rates | None:
    """Rates from the first and the last component alone, on `stop` prefixes; None without a compressor."""
    plans = choose_plans(tally.problem)
    if not plans:
        return None
    search.calibrate(search.treatments.configured)
    began = time.perf_counter()
    search.trial_weights.prepare(plans)
    per_weight = (time.perf_counter() - began) / sum(map(tally.weigh, plans))
    groups = [plans] if tally.work.together > 1 else [[plan] for plan in plans]
    score_groups(search, groups, names, 1)  # what happens only once, as the proof of the engine, is not to count
    began = time.perf_counter()
    score_groups(search, groups, names, stop)
    seconds = time.perf_counter() - began
    search.trial_weights.forget()
    runs = tally.count_runs(plans) if len(groups) == 1 else len(plans)
    return Rates(seconds / runs * search.prefixes / stop, per_weight)


def choose_plans(problem: Problem) -> list[Plan]:
    """The first and the last component alone, each with a middle amount of the first compressor."""
    ends = (problem.components[0].name, problem.components[-1].name)
    first = [*problem.offers.items()][:1]
    return [{name: Treatment(compressor, find_middle(offers[name]))} for compressor, offers in first for name in ends]


def make_replacements(search: Search, plan: Plan) -> dict[str, Replacement]:
    return {name: make_replacement(weight) for name, weight in search.treatments.compress(search.model, plan).items()}


def find_middle(offer: Offer) -> float:
    """An amount that is offered, in the middle."""
    return (offer.low + offer.high) / 2 if offer.is_range else sorted(offer.levels)[len(offer.levels) // 2]


def score_groups(search: Search, groups: Sequence[Sequence[Plan]], names: Sequence[str], stop: int) -> None:
    """Score trials, those of a group together; scores are not looked at."""
    for trials in groups:
        deque(search.evaluators[Prefixes.SEARCH].score(trials, names, 0, stop), maxlen=0)


def sum_up(record: Record, search: Search, folder: Path) -> Expense:
    """What a run has really cost."""
    memory = read_memory(search.model.device)
    return Expense(
        trials=sum(step.trials for step in record.rounds),
        passes=sum(step.passes for step in record.rounds),
        seconds=record.phases["search"],
        memory_bytes=memory.peak if memory else None,
        disk_bytes=measure_folder(folder),
    )
