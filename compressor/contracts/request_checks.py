"""Checks of a schedule's requests against its problem, before any time is spent on an answer.

Every oracle gets requests from a `Dialogue`, which makes these checks. What is known to be valid is not checked again.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from compressor.contracts.guard import show
from compressor.contracts.requests import (
    BestRequest,
    CountRequest,
    EstimateRequest,
    KeepRequest,
    Prefixes,
    Problem,
    Request,
    ScoreRequest,
    SizeRequest,
    ValuesRequest,
    Waypoint,
)
from compressor.contracts.types import Treatment
from compressor.errors import PlanError, PluginError, suggest

STATISTICS = ("mean", "min", "p25", "median", "p75", "max")
"""The statistics of a score by which trials can be ranked."""
NOTHING = object()


class RequestChecks:
    """The checks of the requests of one search; `owner` is the schedule in errors, which are PluginErrors.

    A schedule that `repeats` earlier decisions may use compressors that are not offered. Whether they are installed,
    and offer the amounts with the options of the plan, is checked where the plan is applied.
    """

    def __init__(self, owner: str, problem: Problem, repeats: bool = False) -> None:
        self.owner, self.problem, self.repeats = owner, problem, repeats
        self.components = {component.name: component for component in problem.components}
        proof = problem.prefixes if problem.proof_prefixes is None else problem.proof_prefixes
        self.prefixes = {Prefixes.SEARCH: problem.prefixes, Prefixes.PROOF: proof}
        self.is_over = False
        self._valid: dict[str, Treatment] = {}
        """Component -> the last valid treatment. Trials of a search share most of their treatments."""

    def check(self, request: object) -> Request[Any]:
        """The request; raises PluginError for anything that no oracle could answer."""
        if type(request) not in KINDS:
            raise PluginError(
                f"{self.owner} yielded {show(request)}, which is not a request; yield one of compressor.contracts"
            )
        if self.is_over:
            self._refuse(request, "comes after a KeepRequest with `last`", "set that on the last one only")
        match request:
            case ScoreRequest() | ValuesRequest():
                self._check_trials(request, request.trials)
                if not is_sequence(request.metrics) or not request.metrics:
                    self._refuse_field(request, "metrics", request.metrics, "give a sequence of names of metrics")
                for metric in request.metrics:
                    self._check_metric(request, "metrics", metric)
                if not isinstance(request.prefixes, Prefixes):
                    self._refuse_field(request, "prefixes", request.prefixes, "give Prefixes.SEARCH or Prefixes.PROOF")
                self._check_range(request, self.prefixes[request.prefixes])
            case BestRequest():
                self._check_best(request)
            case EstimateRequest():
                self._check_options(request, request.options)
                self._check_flags(request, "by_row", "measured")
                self._check_objective(request)
                self._check_plan(request, "at", request.at)
                self._check_range(request, self.prefixes[Prefixes.SEARCH])
            case SizeRequest():
                self._check_options(request, request.options)
                self._check_flags(request, "on_disk")
            case CountRequest():
                self._check_count(request)
            case KeepRequest():
                self._check_keep(request)
        return request  # type: ignore[return-value]  # its type is one of KINDS

    def _check_trials(self, request: object, trials: Sequence[object]) -> None:
        if not is_sequence(trials) or not trials:
            self._refuse_field(request, "trials", trials, "give a sequence of at least one plan")
        for index, plan in enumerate(trials):
            self._check_plan(request, "trials", plan, index)

    def _check_plan(self, request: object, field: str, plan: object, index: int | None = None) -> None:
        """Refuse what is no plan for the components and offers of the problem."""
        if not isinstance(plan, dict | Mapping):
            place = field if index is None else f"{field}[{index}]"
            self._refuse_field(request, place, plan, "a plan is a mapping of components to treatments")
        valid = self._valid.get
        for name, treatment in plan.items():
            if valid(name, NOTHING) is not treatment:
                self._check_treatment(request, field, name, treatment)

    def _check_treatment(self, request: object, field: str, name: Any, treatment: object) -> None:  # noqa: ANN401
        """Refuse what is no treatment that is offered for a component."""
        component = self.components.get(name)
        if component is None:
            fix = suggest(say_name(name), self.components)
            self._refuse_field(request, field, name, f"it is no component of the problem; {fix}")
        place = f"{field}[{say_name(name)}]"
        if not isinstance(treatment, Treatment):
            self._refuse_field(request, place, treatment, "give a Treatment")
        problem = find_flaw(treatment)
        if problem is not None:
            self._refuse_field(request, place, treatment, problem)
        if not self.repeats:
            if treatment.compressor not in self.problem.offers:
                fix = suggest(treatment.compressor, self.problem.offers)
                self._refuse_field(request, place, treatment, f"its compressor is not offered; {fix}")
            offer = self.problem.offers[treatment.compressor][name]
            if treatment.options:
                pass  # other options may have another offer, which is checked where the compressor is built
            elif treatment.rows is None:
                if not offer.contains(treatment.amount):
                    self._refuse_field(request, place, treatment, f"offered: {offer}")
            else:
                try:
                    offer.require_rows(treatment.rows, treatment.compressor, component)
                except PlanError as error:
                    self._refuse(request, f"has rows in `{field}` that do not fit", str(error))
        self._valid[name] = treatment

    def _check_options(self, request: object, options: object) -> None:
        """Refuse what is no mapping of components to options that are offered, or to None."""
        if not isinstance(options, Mapping) or not options:
            self._refuse_field(request, "options", options, "give a mapping of components to their options")
        for name, choices in options.items():
            if not is_sequence(choices) or not choices:
                self._refuse_field(
                    request, f"options[{say_name(name)}]", choices, "give a sequence of at least one option"
                )
            if name not in self.components:
                fix = suggest(say_name(name), self.components)
                self._refuse_field(request, "options", name, f"it is no component of the problem; {fix}")
            for option in choices:
                if option is not None:
                    self._check_treatment(request, "options", name, option)

    def _check_metric(self, request: object, field: str, metric: object) -> None:
        if not isinstance(metric, str) or metric not in self.problem.better:
            fix = suggest(say_name(metric), self.problem.better)
            self._refuse_field(request, field, metric, f"no such metric is configured; {fix}")

    def _check_statistic(self, request: object, field: str, statistic: object) -> None:
        if not isinstance(statistic, str) or statistic not in STATISTICS:
            self._refuse_field(request, field, statistic, f"it must be one of {', '.join(STATISTICS)}")

    def _check_range(self, request: Any, prefixes: int) -> None:  # noqa: ANN401 - one of several kinds
        """Refuse a range that is empty, or goes beyond the prefixes."""
        start, stop = request.start, request.stop
        if not is_integer(start) or not 0 <= start < prefixes:
            self._refuse_field(request, "start", start, f"it must be in [0, {prefixes}), the prefixes")
        if stop is not None and (not is_integer(stop) or not start < stop <= prefixes):
            self._refuse_field(request, "stop", stop, f"it must be in [{start + 1}, {prefixes}], or None for all")

    def _check_flags(self, request: object, *fields: str) -> None:
        for field in fields:
            if not isinstance(value := getattr(request, field), bool):
                self._refuse_field(request, field, value, "it must be True or False")

    def _check_best(self, request: BestRequest) -> None:
        self._check_trials(request, request.trials)
        self._check_metric(request, "metric", request.metric)
        if not is_integer(request.count) or request.count < 1:
            self._refuse_field(request, "count", request.count, "it must be at least 1; ask for one")
        self._check_statistic(request, "statistic", request.statistic)
        trials = len(request.trials)
        if not is_sequence(request.bounds) or len(request.bounds) not in (0, trials):
            rule = f"there must be one for each of {trials} trials, or none; None is one"
            self._refuse_field(request, "bounds", request.bounds, rule)
        for bound in request.bounds:
            if bound is not None and not is_number(bound):
                self._refuse_field(request, "bounds", bound, "a bound is a number, or None")

    def _check_objective(self, request: EstimateRequest) -> None:
        self._check_metric(request, "objective", request.objective)
        if not request.measured and request.objective not in self.problem.estimable:
            able = ", ".join(sorted(self.problem.estimable)) or "no metric of this run"
            rule = f"only {able} can be estimated; set `measured` for others"
            self._refuse_field(request, "objective", request.objective, rule)

    def _check_count(self, request: CountRequest) -> None:
        if not isinstance(request.compressor, str) or request.compressor not in self.problem.offers:
            fix = suggest(say_name(request.compressor), self.problem.offers)
            self._refuse_field(request, "compressor", request.compressor, f"no such compressor is configured; {fix}")
        limits = request.thresholds
        if not is_sequence(limits) or not limits or not all(map(is_number, limits)) or any(map(math.isnan, limits)):
            self._refuse_field(request, "thresholds", limits, "give a sequence of numbers, none of them NaN")
        if list(limits) != sorted(limits):
            self._refuse_field(request, "thresholds", limits, "they must increase; give sorted thresholds")

    def _check_keep(self, request: KeepRequest) -> None:
        self._check_plan(request, "plan", request.plan)
        target = request.target
        if target is not None and not (is_number(target) and 0.0 <= target <= 1.0):
            self._refuse_field(request, "target", target, "a mean amount in [0, 1] or None is needed")
        if not is_sequence(request.notes) or not all(isinstance(note, str) for note in request.notes):
            self._refuse_field(request, "notes", request.notes, "give a sequence of sentences")
        if not is_sequence(request.curve):
            self._refuse_field(request, "curve", request.curve, "give a sequence of Waypoints")
        for index, waypoint in enumerate(request.curve):
            self._check_waypoint(request, f"curve[{index}]", waypoint)
        most = request.most_bytes
        if most is not None and (not is_integer(most) or most < 0):
            self._refuse_field(request, "most_bytes", most, "a whole number of bytes or None is needed")
        if not isinstance(request.singles, Mapping):
            self._refuse_field(request, "singles", request.singles, "give a mapping of metrics to numbers")
        for metric, change in request.singles.items():
            self._check_metric(request, "singles", metric)
            if not is_number(change) or not math.isfinite(change):
                self._refuse_field(request, f"singles[{say_name(metric)}]", change, "a finite number is needed")
        self._check_flags(request, "last")
        self.is_over = request.last

    def _check_waypoint(self, request: object, field: str, waypoint: object) -> None:
        if not isinstance(waypoint, Waypoint):
            self._refuse_field(request, field, waypoint, "give a Waypoint")
        self._check_plan(request, f"{field}.plan", waypoint.plan)
        self._check_metric(request, f"{field}.metric", waypoint.metric)
        self._check_statistic(request, f"{field}.statistic", waypoint.statistic)
        if not is_number(waypoint.value) or not math.isfinite(waypoint.value):
            self._refuse_field(request, f"{field}.value", waypoint.value, "a finite number is needed")

    def _refuse_field(self, request: object, field: str, value: object, rule: str) -> NoReturn:
        self._refuse(request, f"has `{field}` {show(value)}", rule)

    def _refuse(self, request: object, flaw: str, rule: str) -> NoReturn:
        raise PluginError(f"{self.owner} made a {type(request).__name__} that {flaw}; {rule}")


KINDS = (ScoreRequest, ValuesRequest, BestRequest, EstimateRequest, SizeRequest, CountRequest, KeepRequest)


def find_flaw(treatment: Treatment) -> str | None:
    """The rule that a field of a treatment breaks, besides those that it checks itself; None if there is none."""
    if not isinstance(treatment.compressor, str):
        return "its `compressor` must be a name"
    if not isinstance(treatment.options, Mapping):
        return "its `options` must be a mapping"
    if treatment.rows is not None and not isinstance(treatment.rows, tuple):
        return "its `rows` must be a tuple, or None"
    if not all(map(is_number, (treatment.amount, *(treatment.rows or ())))):
        return "its amounts must be of type float"
    return None


def say_name(value: object) -> str:
    """A name as it is, anything else short, whatever its `__str__` does."""
    return value if isinstance(value, str) else show(value)


def is_sequence(value: object) -> bool:
    """Whether it is a sequence of things; a text is not one."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a float, numpy's float64 included, or an int that has a float; others cannot be recorded."""
    return isinstance(value, float) or (is_integer(value) and abs(value) < sys.maxsize)  # type: ignore[arg-type]
