"""`compressor forecast`: predict from one backward pass what every treatment and every size would cost."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.forecast_record import (
    CheckForecast,
    ForecastRecord,
    MatrixForecast,
    OptionForecast,
    PointForecast,
)
from compressor.artifacts.plan_file import plan_to_json
from compressor.artifacts.run_folder import working_in
from compressor.artifacts.run_record import collect_versions, time_phase
from compressor.commands.cost import SMALL_FILES, check_room
from compressor.commands.early_checks import TARGETS, check_forecast
from compressor.commands.next_command import add_commands
from compressor.commands.setup import RunSetup, open_setup
from compressor.commands.text_cost import count_texts
from compressor.compression.amounts import mean_amount
from compressor.contracts import EstimateRequest, Plan, Prefixes, Problem, SizeRequest
from compressor.contracts.declarations import read_ranks
from compressor.plugins import Plugins
from compressor.progress import Progress, Silent
from compressor.report.forecast_report import write_forecast
from compressor.search.ledger import describe_cached
from compressor.search.predicted_plan import PredictedOracle, check_predictable, find_plan
from compressor.search.session import Session
from compressor.sensitivity.cost_table import CostTable, make_cost_table, sample_options
from compressor.sensitivity.expected_fdt import Law, read_law
from compressor.sensitivity.margin_law import TRUSTED_NOISE
from compressor.sensitivity.unreached import describe_unreached
from compressor.settings import Settings

log = logging.getLogger(__name__)
NOISE, COUNTED = "margin_noise", "fdtm"
"""The metric that the margin law starts from, and the one that it predicts."""
SIZES = 20
"""Points of a curve."""
SMALLEST_AMOUNT = 0.05
ENTRY = 300
"""Bytes of an option of a component, or of a treatment of a plan, in forecast.json and forecast.html; approximate."""

Points = list[tuple[PointForecast, Plan]]


@dataclass
class Forecast:
    """One forecast in progress; `execute` does all its phases."""

    settings: Settings
    folder: Path
    record: ForecastRecord
    progress: Progress = field(default_factory=Silent)
    setup: RunSetup = field(init=False)
    session: Session = field(init=False)
    law: Law = field(init=False)
    predictions: dict[str, CostTable] = field(init=False, default_factory=dict)

    def execute(self, plugins: Plugins) -> ForecastRecord:
        """Do every phase in order. Returns the complete record."""
        with time_phase(self.record, "load"):
            self.load(plugins)
        with time_phase(self.record, "reference"):
            self.build_reference()
        with time_phase(self.record, "estimate"):
            self.describe_components(self.predict(NOISE))
        self.record.notes.extend(describe_cached(self.session.scorer.ledger.cached))
        with time_phase(self.record, "curves"):
            points = self.draw_curves(self.predict(NOISE))
        with time_phase(self.record, "check"):
            self.check(points)
        return self.record

    def load(self, plugins: Plugins) -> None:
        """Load model, metrics and compressors. Wrong settings are errors here, before any work."""
        settings = self.settings
        check_forecast(settings)
        if settings.recovery is not None:
            log.warning("`recovery` has no effect in a forecast, which does not train; leave it out")
        needs = [*read_ranks(settings.schedule), NOISE, *([COUNTED] if settings.forecast.check else [])]
        self.setup = open_setup(settings, plugins, needs, self.progress)
        self.session = self.setup.open_session(self.folder, self.progress, notes=self.record.notes)
        self.record.notes.extend(self.setup.model.notes)
        first = next(iter(getattr(settings.schedule, TARGETS)), SMALLEST_AMOUNT)
        check_predictable(settings.schedule, first, self.session)
        check_room(self.folder, self.count_disk(), "forecast")
        cost = count_texts(self.setup, [Prefixes.SEARCH], trains=False)
        cost.check(self.setup.memory.host)
        cost.tell(self.setup.model, self.progress)
        model, tokens = self.setup.model, settings.data.continuation_tokens
        self.record.base = {
            "parameters": model.base_parameters,
            "bytes": model.stored_bytes,
            "bits_per_weight": self.mean_bits({}),
            "expected_fdtm": float(tokens),
        }
        self.record.objective, self.record.trusted_noise = NOISE, TRUSTED_NOISE

    def count_disk(self) -> int:
        """Bytes of the results: every option of every component, and a plan for every size."""
        components, offers = self.setup.model.components, self.session.problem.offers
        options = sum(len(sample_options(offers, name)) for name in components)
        sizes = len(getattr(self.settings.schedule, TARGETS)) or SIZES
        return ENTRY * (options + sizes * len(components)) + SMALL_FILES

    def build_reference(self) -> None:
        """Make the reference of the search prefixes, and read the base's margins, which the margin law needs."""
        steps = self.setup.take_reference_steps([Prefixes.SEARCH])
        deque(self.progress.track(steps, "what the base says", 3), maxlen=0)
        self.law = read_law(self.setup.evaluators[Prefixes.SEARCH].reference, self.settings.seed)
        self.record.reference = self.setup.describe_reference(Prefixes.SEARCH)

    def predict(self, objective: str) -> CostTable:
        """The estimated effect of every option of every component on an objective; estimated only once."""
        if objective not in self.predictions:
            components, offers = self.setup.model.components, self.session.problem.offers
            grid = {name: sample_options(offers, name) for name in components}
            estimates = self.session.estimate(EstimateRequest(grid, objective))
            sizes = self.session.sizes(SizeRequest(grid))
            self.predictions[objective] = make_cost_table(components, offers, grid, estimates, sizes)
        return self.predictions[objective]

    def describe_components(self, known: CostTable) -> None:
        """Record every option of every component, and note the components that no token reached."""
        for name, component in self.setup.model.components.items():
            options = []
            for compressor, found in known.options[name].items():
                cost, low, high = self.law.cost(found.changes)
                numbers = np.stack([found.bits / 8, cost, low, high, self.law.fdt(np.sqrt(cost))])
                if not known.reached[name]:
                    numbers[1:] = np.nan
                rows = zip(found.amounts.tolist(), numbers.T.tolist(), strict=True)
                options += [OptionForecast(compressor, amount, *row) for amount, row in rows if amount > 0]
            self.record.components[name] = MatrixForecast(
                component.kind, component.layer, component.parameters, known.reached[name], options
            )
        unreached = [name for name, reached in known.reached.items() if not reached]
        if unreached:
            data, components = self.settings.data, self.session.problem.components
            said = describe_unreached(components, unreached, data.prefixes, data.continuation_tokens)
            self.record.notes.append(f"Nothing is known of {said}. Their treatment counts as no change.")

    def draw_curves(self, known: CostTable) -> Points:
        """A plan for every size, of all compressors together and of each alone; returns the points of the former."""
        names, schedule = list(self.session.treatments.configured), self.settings.schedule
        sets = [names, *([name] for name in names if len(names) > 1)]
        oracle = PredictedOracle(schedule.name, known, self.predict, self.session.counts)
        tasks = [(group, self.choose_among(group), self.choose_sizes(group, known.reach(group))) for group in sets]
        total = sum(len(sizes) for _, _, sizes in tasks)
        steps = (
            (group, find_plan(schedule, size, problem, self.session.fuses, oracle))
            for group, problem, sizes in tasks
            for size in sizes
        )
        found: dict[tuple[str, ...], Points] = {tuple(group): [(self.describe({}, known), {})] for group in sets}
        for group, plan in self.progress.track(steps, "a plan for every size", total):
            found[tuple(group)].append((self.describe(plan, known), plan))
        curves = {group: drop_beaten(points) for group, points in found.items()}
        together = curves[tuple(names)]
        for point, plan in together:
            point.plan = plan_to_json(self.session.treatments.fill_options(plan))
        self.record.curve = [point for point, _ in together]
        self.record.curves = {group[0]: [p for p, _ in points] for group, points in curves.items() if len(group) == 1}
        return together

    def choose_among(self, compressors: Sequence[str]) -> Problem:
        """The problem with some of the compressors only; the mean over all prefixes counts as one prefix."""
        problem = self.session.problem
        return replace(problem, offers={name: problem.offers[name] for name in compressors}, prefixes=1)

    def choose_sizes(self, compressors: Sequence[str], reach: float) -> list[float]:
        """Mean amounts to plan for: the schedule's own, as far as they can be reached.

        Otherwise an even spread, and the fixed amounts of the compressors, such as 0.5 for int8 everywhere.
        """
        given = list(getattr(self.settings.schedule, TARGETS))
        if given:
            return [amount for amount in given if amount <= reach + 1e-9]
        count = SIZES if reach > SMALLEST_AMOUNT else 1
        spread = {float(amount) for amount in np.linspace(min(SMALLEST_AMOUNT, reach), reach, count)}
        offers = [offer for name in compressors for offer in self.session.problem.offers[name].values()]
        fixed = {amount for offer in offers if not offer.is_range for amount in offer.levels if 0 < amount < reach}
        return sorted(spread | fixed)

    def describe(self, plan: Plan, known: CostTable) -> PointForecast:
        """The point of a plan on the curve."""
        model, expected = self.setup.model, self.law.expect(known.change(plan))
        bits = self.mean_bits({name: known.bits(name, treatment) for name, treatment in plan.items()})
        weights = sum(component.parameters for component in model.components.values())
        parts: dict[str, float] = {}
        for name, treatment in plan.items():
            if treatment.amount > 0:
                share = model.components[name].parameters / weights
                parts[treatment.compressor] = parts.get(treatment.compressor, 0.0) + share
        return PointForecast(
            amount=mean_amount(model.components, plan),
            bytes=model.stored_bytes + (bits - self.mean_bits({})) * weights / 8,
            bits_per_weight=bits,
            noise=expected.noise,
            expected_fdtm=expected.fdt,
            low=expected.low,
            high=expected.high,
            trusted=expected.noise <= TRUSTED_NOISE,
            parts=parts,
        )

    def mean_bits(self, packed: Mapping[str, float]) -> float:
        """Mean bits of a weight; a component without an entry counts as the checkpoint stores it."""
        components = self.setup.model.components.values()
        bits = sum(packed.get(c.name, c.parameters * c.stored_bits) for c in components)
        return float(bits / sum(component.parameters for component in components))

    def check(self, points: Points) -> None:
        """Score some plans of the part of the curve where the law is trusted, on the search prefixes."""
        chosen = choose_checks(points, self.settings.forecast.check)
        if len(chosen) < self.settings.forecast.check:
            self.record.notes.append(
                f"{len(chosen)} of {self.settings.forecast.check} checks could be made: there are no more plans where "
                "the law is trusted."
            )
        trials = [plan for _, plan in chosen]
        groups = self.setup.evaluators[Prefixes.SEARCH].score(trials)
        scored = (item for group in groups for item in group.items())
        found = dict(self.progress.track(scored, "checking plans", len(trials)))
        for number, (point, _) in enumerate(chosen):
            scores, measured = self.session.scorer.summarize(found[number]), float(found[number][NOISE][:, 0].mean())
            additivity = point.noise**2 / measured if measured > 0 else None
            self.record.checks.append(
                CheckForecast(point.amount, point.bytes, point.noise, point.expected_fdtm, scores, additivity)
            )


def drop_beaten(points: Points) -> Points:
    """The points by increasing amount, without dominated ones: those with a better point at a larger amount."""
    kept: Points = []
    for point, plan in sorted(points, key=lambda pair: (-pair[0].amount, -pair[0].expected_fdtm)):
        if not kept or (point.expected_fdtm >= kept[-1][0].expected_fdtm and point.amount < kept[-1][0].amount):
            kept.append((point, plan))
    return kept[::-1]


def choose_checks(points: Points, count: int) -> Points:
    """`count` points of the part where the law is trusted, evenly spread; all of them if there are fewer."""
    trusted = [pair for pair in points if pair[0].trusted and pair[0].amount > 0]
    places = sorted({int((index + 0.5) * len(trusted) / count) for index in range(count)} if trusted else set())
    return [trusted[place] for place in places]


def execute(
    settings: Settings,
    plugins: Plugins,
    folder: Path,
    config: dict[str, Any],
    command: str,
    progress: Progress | None = None,
) -> ForecastRecord:
    """Make the forecast of `settings`, and write forecast.json and forecast.html to `folder`.

    `config` is what to record as the configuration, `command` how it was started.
    """
    record = ForecastRecord(config, collect_versions(), command)
    with working_in(folder, command):
        Forecast(settings, folder, record, progress or Silent()).execute(plugins)
        add_commands(record, folder, plugins)
        write_forecast(record, folder)
    return record
