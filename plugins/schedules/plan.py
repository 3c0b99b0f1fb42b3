"""Applies a plan from a file, of an earlier run or written by hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.artifacts.plan_file import read_plan
from compressor.contracts import Compressor, KeepRequest, Metric, Problem, Schedule, Search, Treatment
from compressor.errors import ConfigError, PlanError, suggest
from compressor.plugins import installed

from .targets import check_amount


@dataclass
class ReplayedPlan(Schedule):
    """Keeps the plan of a plan.json in one round and scores no trials: `schedule=plan schedule.path=plan.json`.

    Components that the file does not name stay unchanged. Amounts per row are read from the rows.safetensors beside it.
    A treatment without options uses those of this run. Compressors of the plan must be installed; they need not be
    configured. With an `amount` the path is a forecast.json, and the plan is that of the point of its curve with this
    mean amount: `schedule=plan schedule.path=forecast.json schedule.amount=0.45`. With a `depth` the path is the
    report.json of a beam search, and the plan is the best one that treats so many components.
    """

    name: ClassVar[str] = "plan"
    repeats: ClassVar[bool] = True

    path: str = ""
    depth: int | None = None
    amount: float | None = None

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        self._read()

    def search(self, problem: Problem) -> Search:
        plan = self._read()
        for name, treatment in plan.items():
            check_treatment(name, treatment, problem)
        yield from KeepRequest(plan, last=True)

    def _read(self) -> dict[str, Treatment]:
        """The plan of the file; raises ConfigError for options that do not fit one another, PlanError for the file."""
        if not self.path:
            raise ConfigError("`schedule.path` must be a plan.json, got nothing; give schedule.path=plan.json")
        if self.depth is not None and self.amount is not None:
            raise ConfigError(
                f"give only one of `schedule.depth` (of a report.json) and `schedule.amount` (of a forecast.json), "
                f"got {self.depth} and {self.amount:g}; drop one of them"
            )
        if self.depth is not None and self.depth < 1:
            raise ConfigError(f"`schedule.depth` must be at least 1, got {self.depth}; it is a number of components")
        if self.amount is not None:
            check_amount(self.amount)
        return read_plan(self.path, self.depth, self.amount)


def check_treatment(name: str, treatment: Treatment, problem: Problem) -> None:
    """Raises PlanError if the model has no such component, or the treatment is not possible for it."""
    known = {component.name: component for component in problem.components}
    if name not in known:
        raise PlanError(f"the plan treats {name!r}, which is not a component of this model; {suggest(name, known)}")
    out = known[name].shape[0]
    if treatment.rows is not None and len(treatment.rows) != out:
        raise PlanError(
            f"the plan gives `{name}` amounts for {len(treatment.rows)} rows, it has {out}; use a plan of this model"
        )
    if treatment.compressor not in problem.offers:
        compressors = installed().compressors
        if treatment.compressor not in compressors:
            unknown = compressors.unknown(treatment.compressor)
            raise PlanError(f"the plan treats `{name}` by a compressor that is not installed: {unknown}")
        return
    offer = problem.offers[treatment.compressor][name]
    # Options of the treatment may change the offer. The run checks it when it builds the compressor.
    if treatment.options:
        return
    if treatment.rows is not None:
        offer.require_rows(treatment.rows, treatment.compressor, known[name])
    elif not offer.contains(treatment.amount):
        raise PlanError(
            f"the plan has amount {treatment.amount:g} for `{name}`, {treatment.compressor} offers {offer}; "
            "change the amount, or give the options that offer it"
        )
