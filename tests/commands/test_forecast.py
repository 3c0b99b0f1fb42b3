"""The forecast: what it predicts, against the same numbers made another way, and what it leaves behind."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from compressor.artifacts.forecast_record import ForecastRecord, PointForecast
from compressor.artifacts.plan_file import read_plan
from compressor.artifacts.run_folder import working_in
from compressor.artifacts.run_record import ReferenceRecord
from compressor.commands import forecast as module
from compressor.commands.forecast import Forecast, choose_checks, drop_beaten
from compressor.contracts import Component, EstimateRequest, Offer, Prefixes, Treatment
from compressor.errors import CompressorError, ConfigError, OutputError
from compressor.evaluation.bootstrap import summarize
from compressor.evaluation.evaluator import Evaluator
from compressor.models import load_model
from compressor.plugins import installed
from compressor.report.forecast_page import make_forecast_page
from compressor.report.forecast_report import summarize_forecast, write_forecast
from compressor.report.forecast_text import drop_dominated, list_forecast_facts
from compressor.sensitivity.cost_table import CostTable, Options, sample_options
from compressor.sensitivity.estimator import GradientEstimator
from compressor.sensitivity.expected_fdt import Law
from compressor.sensitivity.margin_law import NOISE_GRID, TRUSTED_NOISE, read_table
from compressor.sensitivity.shrinkage import steady_changes
from compressor.settings import ComponentSettings, DataSettings, ForecastSettings, ModelSettings, Settings
from compressor_plugins.metrics.expected_fdtm import ExpectedFdtm
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.margin_noise import MarginNoise
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.budget.budget import Budget
from compressor_plugins.schedules.fdt_allocation import FdtAllocation
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.plan import ReplayedPlan
from compressor_plugins.schedules.uniform import Uniform
from tests.support.bootstrap_t import studentize
from tests.support.browser import Browser
from tests.support.command_line import call_command
from tests.support.families import FAMILIES, each, save_checkpoint
from tests.support.forecasts import make_settings, run
from tests.support.pages import Page, show
from tests.support.slow import rarely, rarely_cases
from tests.support.trial_weights import GivenWeights

PLANTED = '<script>alert("x")</script>'


def open_forecast(folder: Path, settings: Settings) -> Forecast:
    return Forecast(settings, folder, ForecastRecord({"seed": 0}, {}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Forecast:
    """A forecast of part of the embedded model, with two checks."""
    components = ComponentSettings(include=[r"layers\.[02]\."])
    settings = make_settings(components=components, forecast=ForecastSettings(check=2))
    forecast = open_forecast(tmp_path_factory.mktemp("forecast"), settings)
    forecast.execute(installed())
    return forecast


def random_law(sequences: int = 20) -> tuple[Law, np.ndarray]:
    """A law with tables that fall, and predicted σ² of each sequence."""
    draw = np.random.default_rng(0)
    tables = 64 / (1 + draw.uniform(0.5, 3, (sequences, 1)) * NOISE_GRID)
    return Law(tables, seed=3), draw.exponential(0.05, sequences)


def test_the_band_leaves_squares_and_tables_out_together() -> None:
    law, squares = random_law()
    expected = law.expect(squares)
    left_out = []
    for row in range(len(squares)):
        table = np.delete(law.tables, row, axis=0).mean(0)[None]
        left_out.append(float(read_table(table, np.sqrt([np.delete(squares, row).mean()]))[0]))
    assert (expected.low, expected.high) == pytest.approx(studentize(expected.fdt, left_out, 3), rel=1e-9)
    assert expected.noise == pytest.approx(np.sqrt(squares.mean()))
    assert expected.low < expected.fdt < expected.high


@pytest.mark.parametrize("squares", [[0.3], [0.0], [0.0, 0.0, 0.0], [0.0, 0.7, 0.0]])
def test_few_prefixes_and_no_noise_have_a_band(squares: list[float]) -> None:
    law, _ = random_law(len(squares))
    expected = law.expect(np.array(squares))
    assert expected.low <= expected.fdt <= expected.high
    assert (expected.low == expected.high) == (len(squares) == 1 or not any(squares))


def test_the_curve_says_what_the_metric_expected_fdtm_says() -> None:
    law, squares = random_law()
    expected = law.expect(squares)
    score = summarize(
        ExpectedFdtm(), np.concatenate([np.zeros((len(squares), 1)), squares[:, None], law.tables], axis=1), seed=3
    )
    assert [expected.fdt, expected.low, expected.high] == pytest.approx([score.mean, score.low, score.high], rel=1e-9)


def test_costs_have_bootstrap_intervals() -> None:
    law, squares = random_law()
    changes = np.stack([squares, 2 * squares], axis=1)
    cost, low, high = law.cost(changes)
    assert cost == pytest.approx(changes.mean(0))
    for option in range(2):
        left_out = [np.delete(changes[:, option], row).mean() for row in range(len(squares))]
        assert (low[option], high[option]) == pytest.approx(studentize(cost[option], left_out, 3), rel=1e-9)


def make_cost_table() -> CostTable:
    """Two components: one that offers a range in steps of a half, and one of fixed levels too, never reached."""
    changes = np.array([[0.0, 1.0, 4.0], [0.0, 3.0, 5.0]])
    ranged = Options(Offer(), np.array([0.0, 0.5, 1.0]), changes, np.array([64.0, 40.0, 8.0]))
    fixed = Options(Offer((0.5, 0.75)), np.array([0.5, 0.75]), changes[:, 1:], np.array([32.0, 16.0]))
    components = {name: Component(name, "key", 0, (2, 2), 16) for name in ("a", "b")}
    options = {name: {"prune": ranged, "round": fixed} for name in components}
    return CostTable(components, options, {"a": True, "b": False}, sequences=2)


def test_between_two_amounts_lies_a_straight_line() -> None:
    known = make_cost_table()
    assert known.change({"a": Treatment("prune", 0.6)}).tolist() == pytest.approx([1.6, 3.4])
    assert known.bits("a", Treatment("prune", 0.25)) == pytest.approx(52)
    assert known.change({"a": Treatment("prune", 0.0)}).tolist() == [0, 0]
    assert known.change({"a": Treatment("prune", 1.0), "b": Treatment("round", 0.75)}).tolist() == [8, 10]
    assert known.bits("a", Treatment("round", 0.75)) == 16
    assert known.bits("a", None) == 64


def test_what_is_not_offered_is_refused() -> None:
    known = make_cost_table()
    for treatment in (Treatment("round", 0.6), Treatment("other", 0.5), Treatment("prune", 0.5, {"scope": "row"})):
        with pytest.raises(CompressorError, match="`a`"):
            known.change({"a": treatment})
    with pytest.raises(ConfigError, match="rows"):
        known.answer_estimate(EstimateRequest({"a": [None]}, "margin_noise", by_row=True))


def test_a_component_that_no_token_reached_cannot_be_taken_from() -> None:
    known = make_cost_table()
    assert known.reach(["prune"]) == pytest.approx(0.5)
    assert known.reach(["round"]) == pytest.approx(0.375)
    answer = known.answer_estimate(EstimateRequest({"a": [None, Treatment("prune", 0.5)], "b": [None]}, "margin_noise"))
    assert answer["a"].changes.tolist() == [[0, 2]] and answer["a"].reached
    assert not answer["b"].reached


def make_point(amount: float, fdt: float, trusted: bool = True) -> tuple[PointForecast, dict[str, Treatment]]:
    return PointForecast(amount, 1.0, 1.0, 0.1, fdt, fdt, fdt, trusted, {}), {}


def test_points_that_are_beaten_are_left_out() -> None:
    points = [make_point(a, fdt) for a, fdt in ((0.0, 9), (0.1, 5), (0.2, 6), (0.2, 4), (0.3, 6), (0.4, 1))]
    assert [(p.amount, p.expected_fdtm) for p, _ in drop_beaten(points)] == [(0.0, 9), (0.2, 6), (0.3, 6), (0.4, 1)]


def test_checks_are_spread_over_what_is_trusted() -> None:
    points = [make_point(a / 10, 9, a < 9) for a in range(11)]
    assert [p.amount for p, _ in choose_checks(points, 1)] == [0.5]
    assert [p.amount for p, _ in choose_checks(points, 4)] == [0.2, 0.4, 0.6, 0.8]
    assert len(choose_checks(points, 99)) == 8
    assert choose_checks(points[9:], 3) == [] == choose_checks(points, 0)


def test_curves_begin_with_every_token_and_never_rise(made: Forecast) -> None:
    record = made.record
    assert set(record.curves) == {"magnitude", "int8", "int4"}
    for name, points in {"all": record.curve, **record.curves}.items():
        assert (points[0].amount, points[0].expected_fdtm, points[0].noise) == (0, 16, 0), name
        assert points[0].bytes == record.base["bytes"]
        fdt = [point.expected_fdtm for point in points]
        assert fdt == sorted(fdt, reverse=True)
        assert all(point.low <= point.expected_fdtm <= point.high for point in points)
        assert [p.trusted for p in points] == [p.noise <= TRUSTED_NOISE for p in points]
    assert len(record.curve) >= 15
    assert record.curves["int8"][-1].amount == pytest.approx(0.5)
    assert record.curve[-1].amount == pytest.approx(1.0)


def test_together_is_nowhere_worse_than_alone(made: Forecast) -> None:
    amounts = [point.amount for point in made.record.curve]
    together = [point.expected_fdtm for point in made.record.curve]
    for points in made.record.curves.values():
        alone = np.interp(amounts, [p.amount for p in points], [p.expected_fdtm for p in points], right=0)
        # An alternating choice of fixed options may miss a straight line between two points by a little.
        assert (np.array(together) >= alone - 0.3).all()


@pytest.mark.parametrize("compressor", ["int8", "int4"])
def test_a_point_is_what_an_estimate_of_its_plan_says(made: Forecast, compressor: str) -> None:
    plan = {name: Treatment(compressor, made.setup.treatments.configured[compressor].offer(component).levels[0])
            for name, component in made.setup.model.components.items()}  # fmt: skip
    sensitivity = GradientEstimator(
        made.setup.model, made.setup.evaluators[Prefixes.SEARCH].reference, made.setup.treatments, MarginNoise()
    )
    offers = made.session.treatments.offers(made.setup.model)
    grid = {name: sample_options(offers, name) for name in plan}
    found = steady_changes(sensitivity.estimate(EstimateRequest(grid, "margin_noise")))
    squares = sum(found[name][:, grid[name].index(option)] for name, option in plan.items())
    last = made.record.curves[compressor][-1]
    assert last.noise == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    sizes = made.session.treatments.compress(made.setup.model, plan)
    stored = sum(c.parameters * c.stored_bits for c in made.setup.model.components.values())
    packed = sum(weight.bits for weight in sizes.values())
    assert last.bytes == pytest.approx(made.setup.model.stored_bytes - (stored - packed) / 8)


def test_options_of_a_component_are_what_one_estimate_says(made: Forecast) -> None:
    name = next(iter(made.setup.model.components))
    option = next(o for o in made.record.components[name].options if (o.compressor, o.amount) == ("magnitude", 0.5))
    treatment = Treatment("magnitude", 0.5)
    estimate = made.session.estimate(EstimateRequest({name: [treatment]}, "margin_noise"))[name]
    assert option.cost == pytest.approx(estimate.apart.mean(), rel=0.5)  # a ratio near 1, the same for all options
    eight = next(o for o in made.record.components[name].options if o.compressor == "int8")
    other = made.session.estimate(EstimateRequest({name: [Treatment("int8", eight.amount)]}, "margin_noise"))[name]
    assert option.cost / eight.cost == pytest.approx(estimate.apart.mean() / other.apart.mean(), rel=1e-4)
    assert option.low < option.cost < option.high
    assert option.bytes == made.session.treatments.compress_one(made.setup.model, name, treatment).bits / 8
    by_hand = read_table(made.law.tables.mean(0)[None], np.sqrt([option.cost]))
    assert option.expected_fdtm == pytest.approx(by_hand[0])


def test_checks_count_what_a_sweep_counts(made: Forecast, tmp_path: Path) -> None:
    assert len(made.record.checks) == 2
    assert made.setup.model.content_hash() == load_model(ModelSettings()).content_hash()
    reference = made.setup.evaluators[Prefixes.SEARCH].reference
    metrics, given = {"fdtm": Fdtm(), "margin_noise": MarginNoise()}, GivenWeights()
    evaluator = Evaluator(made.setup.model, reference, metrics, given)
    for check in made.record.checks:
        point = next(point for point in made.record.curve if point.amount == check.amount)
        assert point.trusted and check.expected_fdtm == point.expected_fdtm
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(point.plan))
        weights = {
            name: weight.dense()
            for name, weight in made.session.treatments.compress(made.setup.model, read_plan(path)).items()
        }
        (values,) = evaluator.score_all([given.add_plan(weights)])
        assert check.scores["fdtm"] == summarize(Fdtm(), values["fdtm"], 0)
        assert check.scores["margin_noise"].mean == pytest.approx(
            float(MarginNoise().aggregate(values["margin_noise"]))
        )
        assert check.additivity == pytest.approx((point.noise / check.scores["margin_noise"].mean) ** 2)
    assert {fact.name: fact.words for fact in list_forecast_facts(made.record)}["additivity"].count(",") == 1


def test_the_backward_pass_runs_once_and_the_model_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    original = GradientEstimator.estimate

    def estimate(self: GradientEstimator, request: EstimateRequest) -> Any:  # noqa: ANN401
        requests.append(request)
        return original(self, request)

    monkeypatch.setattr(GradientEstimator, "estimate", estimate)
    forecast = open_forecast(tmp_path, make_settings(components=ComponentSettings(include=[r"layers\.1\.mlp"])))
    forecast.load(installed())
    before = [parameter.clone() for parameter in forecast.setup.model.network.parameters()]
    forecast.build_reference()
    forecast.draw_curves(forecast.predict("margin_noise"))
    assert len(requests) == 1
    after = forecast.setup.model.network.parameters()
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("family", each(FAMILIES, ["llama"]))
def test_every_family_gives_a_forecast(tmp_path: Path, family: str) -> None:
    dtype = torch.bfloat16 if family in ("llama", "gpt2", "mixtral") else torch.float32
    save_checkpoint(family, tmp_path / "base", dtype=dtype)
    path = str(tmp_path / "base")
    settings = make_settings(Magnitude(), Int8(), Rtn(bits=[4, 6]), model=ModelSettings(path=path))
    found = run(tmp_path / "out", replace(settings, forecast=ForecastSettings(check=1)))
    model = load_model(ModelSettings(path=path))
    assert set(found["components"]) == set(found["reached"]) == set(model.components)
    assert found["curve"][0]["expected_fdtm"] == 16
    assert all(point["noise"] > 0 and point["expected_fdtm"] <= 16 for point in found["curve"][1:])
    for options in found["components"].values():
        assert [o["amount"] for o in options if o["compressor"] == "magnitude"] == pytest.approx(
            [step / 20 for step in range(1, 21)]
        )
        assert len([o for o in options if o["compressor"] == "rtn"]) == 2


@pytest.mark.slow
def test_experts_that_no_token_reached_are_said(tmp_path: Path) -> None:
    save_checkpoint("mixtral", tmp_path / "base", num_local_experts=10, num_hidden_layers=1)
    data = DataSettings(prefixes=2, prefix_tokens=3, continuation_tokens=4)
    settings = make_settings(Magnitude(), Int8(), data=data, model=ModelSettings(path=str(tmp_path / "base")))
    found = run(tmp_path / "out", settings)
    unreached = [name for name, reached in found["reached"].items() if not reached]
    assert 0 < len(unreached) < len(found["reached"])
    assert all("experts" in name for name in unreached)
    for name in unreached:
        options = found["components"][name]
        assert options and all(option["cost"] is None and option["bytes"] > 0 for option in options)
    assert not any(name in point["plan"] for point in found["curve"] for name in unreached)
    assert found["curve"][-1]["amount"] < 1
    (note,) = [note for note in found["notes"] if "has no tokenizer" not in note]
    assert f"{len(unreached)} of {len(found['reached'])} components" in note
    assert "none of the 8 tokens after 2 prefixes reached; more prefixes (data.prefixes) may reach them" in note
    text = (tmp_path / "out" / "forecast.html").read_text()
    assert "no token" in text and "Nothing is known" in text


@pytest.mark.slow
def test_another_schedule_and_another_objective(tmp_path: Path) -> None:
    components = ComponentSettings(include=[r"layers\.[05]\.mlp"])
    found = {
        name: run(tmp_path / name, make_settings(Magnitude(), schedule=schedule, components=components))
        for name, schedule in {
            "noise": Budget(targets=[0.1, 0.3], corrections=0, objective="margin_noise"),
            "kl": Budget(targets=[0.1, 0.3], corrections=0, objective="kl"),
            "uniform": Uniform(targets=[0.1, 0.3]),
            "global": GlobalThreshold(targets=[0.1, 0.3]),
        }.items()
    }
    for forecast in found.values():
        assert [point["amount"] for point in forecast["curve"]] == pytest.approx([0, 0.1, 0.3], abs=1e-3)
    noise = {name: [point["noise"] for point in forecast["curve"][1:]] for name, forecast in found.items()}
    assert all(np.less_equal(noise["noise"], np.multiply(other, 1.001)).all() for other in noise.values())
    assert noise["kl"] != noise["noise"]
    assert {o["amount"] for o in found["uniform"]["curve"][1]["plan"].values()} == {0.1}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"schedule": FdtAllocation(), "compressor": {"magnitude": Magnitude()}},
            "schedule `fdt_allocation` scores trials, and a forecast only estimates",
        ),
        ({"schedule": Budget(objective="margin_noise")}, "schedule `budget` scores trials"),
        ({"schedule": ReplayedPlan(path="x")}, "has no option `schedule.targets`"),
        ({"schedule": Uniform(targets=[0.3])}, "takes one compressor"),
        ({"schedule": Budget(corrections=0, objective="fdtm")}, "cannot be estimated"),
        ({"schedule": Budget(corrections=0, objective="fdtn")}, "unknown metric `fdtn`"),
        ({"schedule": Budget(corrections=0, bits=4.0)}, "give mean amounts by schedule.targets"),
        ({"forecast": ForecastSettings(check=-1)}, "`forecast.check` must not be negative, got -1"),
        ({"seed": -1}, "`seed` must not be negative"),
        ({"data": DataSettings(continuation_tokens=10_000)}, "the model's context"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    settings = make_settings(components=ComponentSettings(include=[r"layers\.1\.mlp\.up"]), **changes)
    with pytest.raises(CompressorError) as caught:
        run(tmp_path, settings)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {".compressor", "status.json"}


def test_a_metric_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOISE", "margin_nose")
    with pytest.raises(ConfigError, match="unknown metric `margin_nose`; did you mean `margin_noise`"):
        run(tmp_path, make_settings())


def test_a_forecast_is_not_overwritten(made: Forecast, tmp_path: Path) -> None:
    with working_in(tmp_path, "compressor forecast"):
        write_forecast(made.record, tmp_path)
    with pytest.raises(OutputError, match="already holds a finished run or forecast"):
        run(tmp_path, make_settings())


def plant_markup(record: ForecastRecord) -> ForecastRecord:
    """The same forecast, with markup wherever a user, a model or a plugin can put words."""
    found = replace(record, config={"model": {"path": PLANTED}, PLANTED: PLANTED}, command=PLANTED, notes=[PLANTED])
    found.versions = {PLANTED: PLANTED}
    found.reference = ReferenceRecord(PLANTED, 2, 2, 2, 2, 2, PLANTED)
    found.components = {PLANTED + name: matrix for name, matrix in record.components.items()}
    first = next(iter(found.components.values()))
    options = [replace(option, compressor=PLANTED) for option in first.options]
    found.components[PLANTED] = replace(first, kind=PLANTED, options=options)
    found.curves = {PLANTED: record.curve}
    return found


def variants(record: ForecastRecord) -> dict[str, ForecastRecord]:
    """Forecasts of every kind that a page must be able to show."""
    many = replace(record, components={}, checks=[])
    for layer in range(40):
        for index, (name, matrix) in enumerate(list(record.components.items())[:7]):
            many.components[f"{name}.{layer}"] = replace(matrix, kind=f"kind {index}", layer=layer)
    wild = [replace(point, trusted=False) for point in record.curve[1:]]
    dark = {name: replace(matrix, reached=False) for name, matrix in record.components.items()}
    return {
        "made": record,
        "many": many,
        "planted": plant_markup(record),
        "untrusted": replace(record, curve=[record.curve[0], *wild], curves={}, checks=[]),
        "unreached": replace(record, components=dark),
        "bare": ForecastRecord({}, {}, base=record.base),
    }


@pytest.mark.parametrize("name", ["planted", "untrusted", "bare", *rarely(["made", "many", "unreached"])])
def test_the_page_is_one_well_formed_file_that_loads_nothing(made: Forecast, name: str, tmp_path: Path) -> None:
    record = variants(made.record)[name]
    text = make_forecast_page(record)
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) < 1_500_000
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "srcset", "data"} & {key for key, _ in page.attributes}
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "@import" not in text and "url(" not in text
    assert set(re.findall(r"https?://[^\"'<> ]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert page.tags.count("h1") == 1
    assert page.tags.count("caption") == page.tags.count("table")
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    assert show(summarize_forecast(record))
    write_forecast(record, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecast.html", "forecast.json"]
    json.loads((tmp_path / "forecast.json").read_text(), parse_constant=pytest.fail)


def test_a_browser_draws_the_page_without_complaint(made: Forecast, tmp_path: Path, browser: Browser) -> None:
    write_forecast(made.record, tmp_path)
    page = tmp_path / "forecast.html"
    tab = browser.open(page, 390)
    assert tab.messages == [] and tab.requests == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_every_row_and_point_shows_the_command_that_makes_it(made: Forecast) -> None:
    record = copy.deepcopy(made.record)
    for number, point in enumerate([*record.curve, *(p for points in record.curves.values() for p in points)]):
        point.command = f"compressor run schedule=plan point-{number}-" if point.amount > 0 else None
    text = Page(make_forecast_page(record)).text
    rows = [point for point in drop_dominated(record, record.curve) if point.command]
    assert len(rows) >= 10
    for point in rows:  # once in the table, once in the text of the point
        assert point.command is not None and text.count(point.command) == 2
    alone = [p for points in record.curves.values() for p in drop_dominated(record, points) if p.command]
    assert alone and all(f"made by: {point.command}" in text for point in alone)


def test_plans_that_are_dominated_are_not_drawn(made: Forecast) -> None:
    record, text = made.record, Page(make_forecast_page(made.record)).text
    shown = drop_dominated(record, record.curve)
    for point in record.curve:
        better = any(p.bytes <= point.bytes and p.expected_fdtm > point.expected_fdtm for p in record.curve)
        equal = any(p is not point and (p.bytes, p.expected_fdtm) == (point.bytes, point.expected_fdtm) for p in shown)
        assert (point in shown) == (not better and not equal)
    assert f"Not shown: {len(record.curve) - len(shown)} plans" in text and "size on disk, MB" in text
    # Pruning alone makes no file smaller: then plans are compared by amount, and all are drawn.
    pruned = replace(record, curve=record.curves["magnitude"], curves={})
    assert drop_dominated(pruned, pruned.curve) == pruned.curve
    assert "size on disk, MB" not in Page(make_forecast_page(pruned)).text


def test_page_and_table_say_what_is_to_be_known(made: Forecast) -> None:
    text = Page(make_forecast_page(made.record)).text
    for words in ("Nothing was compressed for this page", "where it ends", "not trusted", "counted", "becomes zeros"):
        assert words in text
    table = show(summarize_forecast(made.record))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "the embedded tiny model: what every size would cost"
    assert any(line.startswith("5.66 MB 0.0 % 16.00 16 (16 – 16)") for line in lines)
    assert "…" not in table
    assert "The most and the least sensitive components, at magnitude 50 %" in table


def test_json_is_as_promised(made: Forecast) -> None:
    found = made.record.to_json()
    assert found["objective"] == "margin_noise" and "logits²" in found["cost"]
    options = found["components"]["model.layers.0.self_attn.q_proj"]
    assert set(options[0]) >= {"compressor", "amount", "bytes", "cost", "low", "high"}
    assert set(found["curve"][1]) >= {"amount", "bytes", "expected_fdtm", "low", "high", "noise", "trusted", "plan"}
    assert "plan" not in found["curves"]["int8"][1]
    assert found["base"] == {
        "parameters": 2828736, "bytes": 5663488, "bits_per_weight": 16.0, "expected_fdtm": 16.0,
    }  # fmt: skip


SMALL = ["data.prefixes=6", "data.prefix_tokens=6", "data.continuation_tokens=8", "components.include=[layers.0.mlp]"]


def test_the_command_leaves_a_page_and_a_table(tmp_path: Path) -> None:
    done = call_command(tmp_path, "forecast", "hydra.run.dir=out", "forecast.check=1", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *_, page, advice = done.stdout.splitlines()
    assert page.endswith("/out/forecast.html") and advice.startswith("to make the row of ")
    found = json.loads((tmp_path / "out" / "forecast.json").read_text())
    assert list(found["curves"]) == ["magnitude", "int8", "int4"]
    assert found["config"]["schedule"]["name"] == "budget" and len(found["checks"]) == 1
    assert found["command"].startswith("compressor forecast hydra.run.dir=out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"forecast.html", "forecast.json", "status.json", ".compressor", ".hydra"}


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    done = call_command(
        tmp_path, "forecast", "compressor=rtn", "schedule.targets=[0.5,0.6]", "hydra.run.dir=out", *SMALL
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "forecast.json").read_text())
    assert list(found["curves"]) == ["rtn"]
    assert [point["amount"] >= target for point, target in zip(found["curve"][1:], (0.5, 0.6), strict=True)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forecast.check=-1"], "`forecast.check` must not be negative"),
        (["forecast.chek=1"], "unknown key `forecast.chek`; did you mean `forecast.check`"),
        (["-m", "seed=1,2"], "`compressor forecast` looks at one configuration, got a multirun; leave out -m"),
        *rarely_cases(
            [
                (["schedule=fdt_allocation", "compressor=magnitude"], "scores trials"),
                (["compressor=int9"], "unknown compressor `int9`; did you mean"),
                (["model=hf"], "`model.path`"),
            ]
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    failed = call_command(tmp_path, "forecast", *arguments, *SMALL)
    assert failed.returncode == 1, failed.stderr
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.rglob("forecast.*"))
