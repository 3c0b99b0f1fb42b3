"""Structured pruning against its formula, group by group; runs from end to end whose saved model is cut."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.artifacts.run_record import Record
from compressor.contracts import Component, Context, Schedule
from compressor.errors import ConfigError, ModelError, PlanError
from compressor.settings import ComponentSettings, ExportSettings
from compressor_plugins import calibration_warnings
from compressor_plugins.pruning.structured import Structured
from compressor_plugins.schedules.budget.budget import Budget
from compressor_plugins.schedules.uniform import Uniform
from tests.support.pruning import draw_inputs, draw_weight, find_lowest, make_context
from tests.support.runs import make_settings, run

examples = settings(max_examples=40, deadline=None)
seeds, counts, amounts = st.integers(0, 10**6), st.integers(1, 12), st.floats(0, 1)
NAME = "model.layers.0.self_attn.o_proj"


@pytest.fixture(autouse=True)
def no_warning_was_given() -> None:
    calibration_warnings.given.clear()


def context_of(weight: Tensor, inputs: Tensor, group: int = 1) -> Context:
    found = make_context(weight, inputs)
    component = Component(NAME, "output", 0, (len(weight), weight.shape[1]), 8 * weight.element_size(), group)
    return Context(component, calibration=found.calibration)


@given(seeds, counts, st.integers(1, 4), amounts, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@examples
def test_the_groups_that_change_the_outputs_least_go(
    seed: int, groups: int, size: int, amount: float, dtype: torch.dtype
) -> None:
    weight, inputs = draw_weight(seed, 5, groups * size, dtype), draw_inputs(seed, groups * size)
    found = Structured().compress(weight, amount, context_of(weight, inputs, size)).dense()
    columns = weight.double().square().sum(0) * inputs.double().square().mean(0)
    gone = find_lowest(columns.view(groups, size).sum(1).float().tolist(), round(amount * groups))
    expected = weight.clone()
    for group in gone:
        expected[:, group * size : (group + 1) * size] = 0
    assert torch.equal(found, expected)


def test_the_importance_is_the_error_of_the_outputs() -> None:
    """Where inputs do not correlate, the mean squared error of the outputs is what the removed groups had."""
    weight, inputs = draw_weight(0, 5, 6), torch.eye(6, dtype=torch.float64)[torch.arange(60) % 6]
    inputs *= torch.tensor([1.0, 5.0, 2.0, 0.1, 3.0, 1.0])
    pruner, context = Structured(), context_of(weight, inputs, 2)
    importance = pruner.rank_groups(weight, context)
    dense = pruner.compress(weight, 1 / 3, context).dense()
    error = float(((weight - dense) @ inputs.mT).square().sum(0).mean())
    assert error == pytest.approx(float(importance.min()), rel=1e-5)


def test_larger_amounts_include_smaller_ones_and_zeros_come_first() -> None:
    weight = draw_weight(3, 4, 12)
    weight[:, 6:8] = 0
    context, pruner = context_of(weight, draw_inputs(3, 12), 2), Structured()
    before = torch.zeros(12, dtype=torch.bool)
    steps = [step / 6 for step in range(7)]
    for step, compressed in enumerate(pruner.compress_each(weight, steps, context)):
        gone = (compressed.dense() == 0).all(0)
        assert int(gone.sum()) == max(2, 2 * step) and (gone | ~before).all()
        before = gone
    assert pruner.compress(weight, 1 / 6, context).dense().equal(weight)


@pytest.mark.parametrize("kind", ["query", "key", "value", "gate", "up", "fc_in", "lm_head"])
def test_other_matrices_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"`structured` offers nothing for `a`: .* components\.include, for example"):
        Structured().offer(Component("a", kind, 0, (4, 4), 16))


def test_what_is_wrong_is_named() -> None:
    weight, inputs = draw_weight(0, 4, 4), draw_inputs(0, 4)
    with pytest.raises(PlanError, match="offers any amount"):
        Structured().compress(weight, 1.5, context_of(weight, inputs))
    weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="contains NaN"):
        Structured().compress(weight, 0.5, context_of(weight, inputs))


def test_a_component_that_no_token_reached_is_pruned_by_magnitude(caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.tensor([[3.0, 1.0, 2.0]])
    found = Structured().compress(weight, 1 / 3, context_of(weight, torch.zeros(1, 3))).dense()
    assert found.tolist() == [[3.0, 0.0, 2.0]]
    assert "structured: no calibration token reached" in caplog.text


def run_with(folder: Path, schedule: Schedule, verify: bool = False, *include: str) -> Record:
    components = ComponentSettings(include=list(include) or ["down_proj", "o_proj"])
    export = ExportSettings(cut=True, verify=verify)
    return run(folder, make_settings(schedule, Structured(), components=components, export=export))


def test_a_run_removes_the_same_share_of_every_layer_and_cuts_it(tmp_path: Path) -> None:
    """Of 512 channels and 3 groups of 2 heads, 30 % are 154 channels and one group."""
    record = run_with(tmp_path, Uniform(targets=[0.3]), verify=True)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    names = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert [config[name] for name in names] == [512 - 154, 4, 2, 32]
    assert record.export is not None and record.export.verification is not None and record.final is not None
    assert record.export.verification.state == "verified"
    removed = 6 * 192 * (3 * 154 + 2 * 32 * 2 + 2 * 32)
    assert record.base["bytes"] - record.final.bytes == pytest.approx(2 * removed, abs=2000)  # bfloat16, and headers


def test_a_budget_spends_where_it_costs_least(tmp_path: Path) -> None:
    """Layers lose different shares; what the fullest layer needs is what config.json says."""
    record = run_with(tmp_path, Budget(targets=[0.3], corrections=1), False, "down_proj")
    kept = {name: round(512 * (1 - one.sparsity)) for name, one in record.components.items()}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert len({*kept.values()}) > 1
    assert config["intermediate_size"] == max(kept.values())
    assert sum(kept.values()) == pytest.approx(6 * 512 * 0.7, abs=6)


def test_a_run_on_all_components_is_refused_before_any_pass(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"`structured` offers nothing for `model\.layers\.0\.self_attn\.q_proj`"
    ) as raised:
        run(tmp_path, make_settings(Uniform(), Structured()))
    assert "\n" not in str(raised.value) and not (tmp_path / "reference.safetensors").exists()
