"""Amounts per output row, from a plan by hand to the saved model: every step against numpy, to the last bit."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from compressor.artifacts.plan_file import read_plan, write_plan
from compressor.artifacts.run_folder import claim_files, working_in
from compressor.compression.apply import Treatments
from compressor.contracts import (
    Component,
    CompressedWeight,
    Compressor,
    Context,
    Dialogue,
    KeepRequest,
    Offer,
    Problem,
    Schedule,
    ScoreRequest,
    Search,
    SizeRequest,
    Treatment,
)
from compressor.errors import PlanError, PluginError
from compressor.models import Model, load_model
from compressor.plugins import installed
from compressor.settings import ModelSettings
from compressor.testing.problems import make_problem
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.plan import ReplayedPlan
from tests.support.families import save_checkpoint
from tests.support.runs import make_settings, run


@pytest.fixture
def model(tmp_path: Path) -> Model:
    save_checkpoint("llama", tmp_path / "base", with_tokenizer=True)
    return load_model(ModelSettings(path=str(tmp_path / "base")))


def make_treatments(*compressors: Compressor) -> Treatments:
    return Treatments({compressor.name: compressor for compressor in compressors}, installed().compressors, seed=3)


def draw_rows(component: Component, seed: int = 0) -> tuple[float, ...]:
    rows: list[float] = np.random.default_rng(seed).random(component.shape[0]).tolist()
    return tuple(rows)


def by_rows(rows: Sequence[float], compressor: str = "magnitude") -> Treatment:
    return Treatment(compressor, math.fsum(rows) / len(rows), rows=tuple(rows))


def prune_by_hand(weight: NDArray[np.float32], rows: Sequence[float]) -> NDArray[np.float32]:
    pruned = weight.copy()
    for row, amount in zip(pruned, rows, strict=True):
        row[np.argsort(np.abs(row), kind="stable")[: round(amount * len(row))]] = 0
    return pruned


def test_a_treatment_with_rows_goes_row_by_row(model: Model) -> None:
    plan = {name: by_rows(draw_rows(component)) for name, component in model.components.items()}
    found = make_treatments(Magnitude()).compress(model, plan)
    for name, treatment in plan.items():
        assert treatment.rows is not None
        expected = prune_by_hand(model.read(name).numpy(), treatment.rows)
        assert np.array_equal(found[name].dense().numpy(), expected)


def test_rows_stay_when_options_are_filled_in(model: Model) -> None:
    name, component = next(iter(model.components.items()))
    plan = {name: by_rows(draw_rows(component))}
    filled = make_treatments(Magnitude()).fill_options(plan)
    assert filled == {name: replace(plan[name], options={"scope": "matrix", "pattern": ""})}


@dataclass
class FixedLevels(Compressor):
    """Keeps whole rows or nothing of them; the mean of levels is no level. Fails where nothing is to be left."""

    name = "levels"

    def offer(self, component: Component) -> Offer:
        return Offer(levels=(0.0, 1.0), by_row=True)

    def compress(self, weight: torch.Tensor, amount: float, context: Context) -> CompressedWeight:
        raise AssertionError("rows are wanted")

    def compress_rows(self, weight: torch.Tensor, amounts: Sequence[float], context: Context) -> CompressedWeight:
        if min(amounts) == 1:
            raise KeyError("lost")
        return Magnitude().compress_rows(weight, amounts, context)


def test_levels_are_those_of_rows_not_of_their_mean(model: Model) -> None:
    name, component = next(iter(model.components.items()))
    rows = [float(row % 2) for row in range(component.shape[0])]
    dense = make_treatments(FixedLevels()).compress(model, {name: by_rows(rows, "levels")})[name].dense()
    assert (dense[1::2] == 0).all() and torch.equal(dense[::2], model.read(name)[::2])
    with pytest.raises(PlanError, match=r"^`levels` offers the amounts 0, 1 for `.*`, got 0.5; ask for one of these$"):
        make_treatments(FixedLevels()).compress(model, {name: by_rows([0.5] * len(rows), "levels")})


def test_a_compressor_that_breaks_by_row_is_named(model: Model) -> None:
    name, component = next(iter(model.components.items()))
    with pytest.raises(PluginError, match=f"compressor `levels` of .* on {name}: KeyError: 'lost'"):
        make_treatments(FixedLevels()).compress(model, {name: by_rows([1.0] * component.shape[0], "levels")})


@pytest.mark.parametrize(
    ("compressor", "more", "amount", "message"),
    [
        ("magnitude", 1, 0.5, r"`{}` has {} output rows, got {} amounts for `magnitude`; give every row one"),
        ("magnitude", -1, 0.5, r"`{}` has {} output rows, got {} amounts for `magnitude`; give every row one"),
        ("int8", 0, 0.75, r"`int8` takes one amount per matrix; give `{}` no rows"),
    ],
)
def test_rows_that_do_not_fit(model: Model, compressor: str, more: int, amount: float, message: str) -> None:
    name, component = next(iter(model.components.items()))
    out = component.shape[0]
    with pytest.raises(PlanError) as caught:
        make_treatments(Magnitude(), Int8()).compress(model, {name: by_rows([amount] * (out + more), compressor)})
    assert str(caught.value) == message.format(name, out, out + more)


def test_a_replayed_plan_is_checked_before_anything_is_done(tmp_path: Path) -> None:
    problem = make_problem(["prune", "round"], {})
    name, path = problem.components[1].name, tmp_path / "plan.json"
    wrong = {
        f"the plan gives `{name}` amounts for 3 rows, it has 4; use a plan of this model": ("prune", 3),
        f"`round` takes one amount per matrix; give `{name}` no rows": ("round", 4),
    }
    for message, (compressor, rows) in wrong.items():
        write_plan({name: by_rows([0.5] * rows, compressor)}, path)
        with pytest.raises(PlanError) as caught:
            Dialogue(ReplayedPlan(str(path)), problem)
        assert str(caught.value) == message


def test_float32_would_not_do(model: Model) -> None:
    """Why rows.safetensors is float64: round(0.1 · 5) = 0, but 0.1 in float32 is above a tenth."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    context = Context(Component("a", "up", 0, (1, 5), 32))
    amounts = {dtype: np.array([0.1], dtype).tolist() for dtype in (np.float64, np.float32)}
    zeros = {
        dtype: int((Magnitude().compress_rows(weight, rows, context).dense() == 0).sum())
        for dtype, rows in amounts.items()
    }
    assert zeros == {np.float64: 0, np.float32: 1}


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_a_plan_by_hand_is_done_and_done_again(model: Model, tmp_path: Path) -> None:
    """plan.json + rows.safetensors -> a run -> its own plan and rows -> another run: the same bits everywhere."""
    by_hand = tmp_path / "plan.json"
    names = list(model.components)
    rows = {name: draw_rows(model.components[name], seed) for seed, name in enumerate(names[:-1])}
    plan = {
        name: {"compressor": "magnitude", "amount": float(np.mean(amounts)), "rows": "mine.safetensors"}
        for name, amounts in rows.items()
    }
    by_hand.write_text(json.dumps(plan | {names[-1]: {"compressor": "magnitude", "amount": 0.25}}))
    tensors = {name: torch.tensor(amounts, dtype=torch.float64) for name, amounts in rows.items()}
    safetensors.torch.save_file(tensors, tmp_path / "mine.safetensors")

    found = []
    for folder, path in ((tmp_path / "first", by_hand), (tmp_path / "again", tmp_path / "first" / "plan.json")):
        settings = make_settings(ReplayedPlan(path=str(path)), model=ModelSettings(path=str(tmp_path / "base")))
        record = run(folder, settings)
        assert record.final is not None
        mean = sum(c.amount * c.parameters for c in record.components.values()) / sum(
            c.parameters for c in record.components.values()
        )
        assert record.final.amount == pytest.approx(mean) == pytest.approx(record.final.sparsity, abs=5e-3)
        weights = read_weights(folder / "model")
        for name, amounts in rows.items():
            expected = prune_by_hand(model.read(name).numpy(), amounts)
            assert np.array_equal(weights[f"{name}.weight"].numpy(), expected)
            assert record.components[name].amount == pytest.approx(np.mean(amounts))
        assert (folder / "report.html").stat().st_size > 0
        found.append(folder)
    first, again = found
    for file in ("plan.json", "rows.safetensors", "sequences.jsonl", "model/model.safetensors"):
        assert (first / file).read_bytes() == (again / file).read_bytes(), file

    told = json.loads((first / "model" / "compression.json").read_text())["plan"]
    assert told[names[0]]["rows"] == "compression/rows.safetensors" and "rows" not in told[names[-1]]
    held = (first / "model" / "compression" / "rows.safetensors").read_bytes()
    assert held == (first / "rows.safetensors").read_bytes()
    # Readers that take every *.safetensors of the folder for weights find nothing else there.
    assert [path.name for path in (first / "model").glob("*.safetensors")] == ["model.safetensors"]
    (tmp_path / "first" / "model" / "told.json").write_text(json.dumps(told))
    assert read_plan(first / "model" / "told.json") == read_plan(first / "plan.json")


def test_lines_of_trials_stay_small(tmp_path: Path) -> None:
    """scores.jsonl says that a trial had rows, not which; sizes of options with rows are answered."""

    @dataclass
    class Tries(Schedule):
        name = "tries"

        def search(self, problem: Problem) -> Search:
            component = problem.components[0]
            treatment = by_rows(draw_rows(component))
            sizes = yield SizeRequest({component.name: [treatment]})
            assert sizes == {component.name: [component.parameters * component.stored_bits]}
            yield ScoreRequest([{component.name: treatment}], ("fdtm",))
            yield KeepRequest({component.name: treatment})

    record = run(tmp_path / "run", make_settings(Tries()))
    (line,) = map(json.loads, (tmp_path / "run" / "scores.jsonl").read_text().splitlines())
    ((name, treated),) = line["plan"].items()
    assert treated == {
        "compressor": "magnitude",
        "amount": record.components[name].amount,
        "options": {},
        "rows": True,
    }


def test_a_run_without_rows_has_no_file_of_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError), working_in(tmp_path / "run", "compressor run"):
        claim_files(tmp_path / "run", ["rows.safetensors"])
        (tmp_path / "run" / "rows.safetensors").write_bytes(b"of an earlier run that failed")
        raise ValueError
    write_plan({"model.layers.0.mlp.up_proj": Treatment("magnitude", 0.5)}, tmp_path / "in" / "plan.json")
    run(tmp_path / "run", make_settings(ReplayedPlan(path=str(tmp_path / "in" / "plan.json"))))
    assert not list(tmp_path.rglob("rows.safetensors"))
    assert not (tmp_path / "run" / "model" / "compression").exists()
