"""Does again what an earlier run decided, or what somebody wrote by hand."""

from dataclasses import dataclass
from typing import ClassVar

from compressor.artifacts.plan_file import read_plan
from compressor.contracts import KeepRequest, Problem, Schedule, Search, Treatment
from compressor.errors import ConfigError, PlanError, suggest
from compressor.plugins import installed


@dataclass
class ReplayedPlan(Schedule):
    """Keeps the plan of a plan.json in one round; nothing is scored: `schedule=plan schedule.path=plan.json`.

    Components that the file does not name stay as they are; amounts per row come from the rows.safetensors beside it.
    Treatments without options are done as configured. A compressor need not be configured, so that a plan of several
    can be done again; installed is enough. With an `amount` the path is a forecast.json, and the point of its curve
    that has this mean amount is made: `schedule=plan schedule.path=forecast.json schedule.amount=0.45`. With a `depth`
    it is the report.json of a beam search, and the best plan of so many components is made.
    """

    name: ClassVar[str] = "plan"
    repeats: ClassVar[bool] = True

    path: str = ""
    depth: int | None = None
    amount: float | None = None

    def search(self, problem: Problem) -> Search:
        if not self.path:
            raise ConfigError("`schedule.path` must be a plan.json, got nothing; say schedule.path=plan.json")
        if self.depth is not None and self.amount is not None:
            raise ConfigError(
                f"one of `schedule.depth` and `schedule.amount` may be given, got {self.depth} and {self.amount:g}; "
                "depth is for a report.json, amount for a forecast.json"
            )
        plan = read_plan(self.path, self.depth, self.amount)
        for name, treatment in plan.items():
            check_treatment(name, treatment, problem)
        yield from KeepRequest(plan, last=True)


def check_treatment(name: str, treatment: Treatment, problem: Problem) -> None:
    """Can it be done to a component of that name? Raises PlanError."""
    known = {component.name: component for component in problem.components}
    if name not in known:
        raise PlanError(f"the plan treats {name!r}, which is not a component of this model; {suggest(name, known)}")
    out = known[name].shape[0]
    if treatment.rows is not None and len(treatment.rows) != out:
        raise PlanError(
            f"the plan gives `{name}` amounts for {len(treatment.rows)} rows, it has {out}; take a plan of this model"
        )
    if treatment.compressor not in problem.offers:
        compressors = installed().compressors
        if treatment.compressor not in compressors:
            raise PlanError(f"the plan treats `{name}` by what is missing: {compressors.unknown(treatment.compressor)}")
        return
    offer = problem.offers[treatment.compressor][name]
    # options of its own may change what a compressor offers; only the run, which builds it, can know that
    if treatment.options:
        return
    if treatment.rows is not None:
        offer.require_rows(treatment.rows, treatment.compressor, known[name])
    elif not offer.contains(treatment.amount):
        raise PlanError(
            f"the plan asks for amount {treatment.amount:g} of `{name}`, {treatment.compressor} offers {offer}; "
            "change the amount, or give the options that offer it"
        )
