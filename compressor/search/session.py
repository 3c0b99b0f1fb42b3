"""The loop: ask the schedule, score or count or keep what it asks for, tell it what came out."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from compressor.artifacts.plan_file import plan_to_json
from compressor.artifacts.run_record import CurvePoint, RoundRecord
from compressor.compression.amounts import amount_of, mean_amount, treated_share
from compressor.compression.apply import Treatments, check_names, make_replacement
from compressor.contracts import (
    BestRequest,
    CountRequest,
    Dialogue,
    EstimableMetric,
    Estimate,
    EstimateRequest,
    KeepRequest,
    Plan,
    Prefixes,
    Problem,
    QuantizedMatrix,
    Request,
    Schedule,
    ScoreRequest,
    SizeRequest,
    Waypoint,
)
from compressor.contracts.requests import list_compressors
from compressor.errors import ConfigError
from compressor.evaluation.evaluator import Statistics
from compressor.export import AUTO, FileSizes
from compressor.models import Model
from compressor.search.fused_components import FusedSchedule, name_matrix, name_unit
from compressor.search.ledger import ApproximationTotals
from compressor.search.surrogate import Surrogate
from compressor.search.top_trials import find_best
from compressor.search.trial_scoring import Scorer, note_cached


@dataclass(kw_only=True)
class Search(Scorer):
    """A schedule's search on one model. `rounds` is the record of each kept plan; amounts are cumulative.

    `on_round` is called with the number and the record of each round that ends; `packed_bits` and `grids` are those of
    components as they are kept, `notes` what schedules want a person to know. With `fuses` a schedule decides for
    fused components. The model will be exported in the format `form`, to at most `most_bytes` where there is a limit.
    """

    on_round: Callable[[int, RoundRecord], None]
    packed_bits: dict[str, int] = field(default_factory=dict)
    grids: dict[str, QuantizedMatrix | None] = field(default_factory=dict)
    rounds: list[RoundRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    fuses: bool = False
    form: str = AUTO
    most_bytes: int | None = None

    @cached_property
    def files(self) -> FileSizes:
        """What the model will take on disk."""
        return FileSizes(self.model, self.form)

    def begin(self, schedule: Schedule) -> Dialogue:
        """Open the dialogue with a schedule, which checks its options now, before anything costs time."""
        self.treatments.find_needs(self.treatments.configured)
        if any(compressor.transforms_inputs for compressor in self.treatments.configured.values()):
            self.model.check_transformable(self.model.weight_views)
        return Dialogue(self.adapt(schedule), self.describe_problem())

    def adapt(self, schedule: Schedule) -> Schedule:
        """The schedule as it is to be asked: it may have to decide for several components together."""
        if schedule.repeats or not (self.fuses or schedule.limits_files()):
            return schedule
        return FusedSchedule(schedule, name_unit if self.fuses else name_matrix)

    def describe_problem(self) -> Problem:
        """What a schedule knows of the model."""
        return Problem(
            components=tuple(self.model.components.values()),
            offers=self.treatments.offers(self.model),
            better={name: metric.better for name, metric in self.metrics.items()},
            tokens=self.tokens,
            seed=self.seed,
            estimable=frozenset(name for name, metric in self.metrics.items() if isinstance(metric, EstimableMetric)),
            prefixes=self.prefixes,
            stored_bytes=self.model.stored_bytes,
            packed=self.files.packs,
            fixed_bytes=self.files.rest if self.files.packs else 0,
        )

    def run(self, dialogue: Dialogue) -> None:
        """Answer the schedule until it is done."""
        self.began = time.monotonic()
        while (request := dialogue.propose()) is not None:
            dialogue.tell(self.answer(request))
        if not self.rounds:
            raise ConfigError("the schedule kept no plan; check its options")

    def answer(self, request: Request) -> Any:  # noqa: ANN401 - each request says what its answer is
        """Do what a request asks for."""
        if not isinstance(request, KeepRequest):
            self.calibrate([*self.treatments.configured, *list_compressors(request)])
        match request:
            case ScoreRequest():
                return self.list_values(request) if request.by_sequence else self.score_trials(request)
            case BestRequest():
                return find_best(self, request)
            case EstimateRequest():
                return self.estimate(request)
            case SizeRequest():
                return self.count_sizes(request)
            case CountRequest():
                return self.treatments.count(self.model, request.compressor, request.thresholds)
            case KeepRequest():
                return self.keep(request)

    def count_sizes(self, request: SizeRequest) -> dict[str, list[int]]:
        """What options store: as compressors pack it, or in the files of the export."""
        if not request.on_disk:
            return self.treatments.sizes(self.model, request.options, self.packed_bits)
        count = self.files.count_bits
        now = {
            name: count(name, self.model.read(name), self.packed_bits.get(name), self.grids.get(name))
            for name, choices in request.options.items()
            if None in choices
        }
        return self.treatments.sizes(
            self.model, request.options, now, lambda name, made: count(name, made.dense(), made.bits, made.quantized)
        )

    def estimate(self, request: EstimateRequest) -> dict[str, Estimate]:
        """As every scorer does; a note says what a prediction leaves out."""
        note = note_ignored_inputs(self.treatments, request)
        self.notes.extend([note] if note and note not in self.notes else [])
        return super().estimate(request)

    def keep(self, request: KeepRequest) -> dict[str, float]:
        """Put a plan on the model, score it on the search prefixes, close the round."""
        plan = self.treatments.fill_options(request.plan)
        self.apply(plan, request.last)
        if request.last:
            self.model.held.clear()
        self.kept.update(plan)
        self.most_bytes = request.most_bytes
        statistics = self.evaluators[Prefixes.SEARCH].score_current()
        round_record = RoundRecord(
            target=request.target,
            amount=mean_amount(self.model.components, self.kept),
            scores=self.summarize(statistics),
            trials=self.trials,
            seconds=time.monotonic() - self.began,
            passes=self.passes,
            curve=[self.describe_waypoint(waypoint) for waypoint in request.curve],
            additivity=self.compare_whole(request.singles, statistics),
        )
        saved = self.savings.describe()
        self.notes.extend([*request.notes, *([saved] if saved else []), *note_cached(self.recalled)])
        self.trials, self.recalled, self.passes, self.began = 0, 0, 0.0, time.monotonic()
        self.savings, self.screen = ApproximationTotals(), Surrogate()
        self.rounds.append(round_record)
        self.round = len(self.rounds) + 1
        self.on_round(len(self.rounds), round_record)
        self.progress.say(describe_round(len(self.rounds), round_record))
        return {name: amount_of(self.kept, name) for name in self.model.components}

    def compare_whole(self, singles: Mapping[str, float], statistics: Statistics) -> float | None:
        """What single treatments change, added up, by what the plan changed; from now on it is where changes start.

        On the prefixes of which it is known how they were before. None where nothing got worse, or it is not known.
        """
        started, self.levels = self.levels, {name: rows[:, 0] for name, rows in statistics.items()}
        for name, total in singles.items():
            after, known = self.levels[name], isinstance(self.metrics[name], EstimableMetric)
            before = started.get(name, np.zeros(len(after) if known else 0))
            change = float((after[: len(before)] - before).sum()) / max(1, len(before))
            if self.metrics[name].better.sign * change < 0:
                return total / change
        return None

    def list_grids(self) -> dict[str, QuantizedMatrix | None]:
        """The grids of kept components that take fewer bits than a dense weight; None for those without a grid."""
        dense = {name: c.parameters * c.stored_bits for name, c in self.model.components.items()}
        return {name: grid for name, grid in self.grids.items() if self.packed_bits[name] < dense[name]}

    def apply(self, plan: Plan, is_last: bool = True) -> None:
        """Put a plan on the model: first what is not sequential, by the statistics of the model as it stands.

        The rest goes from layer to layer, each by statistics of its inputs with all of that, and all below, in place.
        Unless it is the last, base weights are held, from which later treatments start.
        """
        check_names(self.model, plan)
        if not is_last:
            self.model.hold(plan)
        sequential = {name: None for name, treatment in plan.items() if self.treatments.is_sequential(treatment)}
        self.calibrate(treatment.compressor for name, treatment in plan.items() if name not in sequential)
        self.write({name: treatment for name, treatment in plan.items() if name not in sequential})
        for last, names in list_layers(self.model, sequential):
            needs = self.treatments.find_needs(plan[name].compressor for name in names)
            self.treatments.calibration = self.gather(names, needs, last)
            self.write({name: plan[name] for name in names})
        self.treatments.calibration = None
        self.made.clear()

    def write(self, plan: Plan) -> None:
        """Compress by the statistics that there are now, and write."""
        for name, weight in self.treatments.compress(self.model, plan).items():
            self.model.write(name, make_replacement(weight))
            self.packed_bits[name], self.grids[name] = weight.bits, weight.quantized and weight.quantized.to("cpu")

    def describe_waypoint(self, waypoint: Waypoint) -> CurvePoint:
        """As it is recorded."""
        share = treated_share(self.model.components, waypoint.plan)
        plan = plan_to_json(self.treatments.fill_options(waypoint.plan))
        return CurvePoint(len(plan), share, waypoint.metric, waypoint.value, plan, waypoint.statistic)


def note_ignored_inputs(treatments: Treatments, request: EstimateRequest) -> str | None:
    """That predictions are too good for compressors that treat inputs, if some of the options are theirs."""
    options = (option for choices in request.options.values() for option in choices if option is not None)
    compressors = dict.fromkeys(option.compressor for option in options if treatments.resolve(option).transforms_inputs)
    if request.measured or not compressors:
        return None
    return (
        f"Estimates of {', '.join(compressors)} see what becomes of weights, and not of their inputs, so that they are "
        "too good; scores see both."
    )


def list_layers(model: Model, names: Collection[str]) -> Iterator[tuple[int | None, list[str]]]:
    """The layers that hold some of these components, from below, with their names; None, last, is outside of them."""
    components = model.components
    inside: dict[int | None, list[str]] = {}
    for name in names:
        inside.setdefault(components[name].layer, []).append(name)
    yield from sorted(inside.items(), key=lambda item: math.inf if item[0] is None else item[0])


def describe_round(number: int, record: RoundRecord) -> str:
    """`round 1 kept: amount 0.400, additivity 0.93`."""
    text = f"round {number} kept: amount {record.amount:.3f}"
    return text if record.additivity is None else f"{text}, additivity {record.additivity:.2f}"
