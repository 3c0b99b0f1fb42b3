"""Wanda against its formula, one set of weights after the other; inputs that are zero; runs from end to end."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.contracts import Schedule
from compressor.errors import ConfigError, ModelError, PlanError
from compressor.settings import ComponentSettings
from compressor_plugins import calibration_warnings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.selection import Scope
from compressor_plugins.pruning.wanda import Wanda
from compressor_plugins.schedules.budget.budget import Budget, Granularity
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.uniform import Uniform
from tests.support.pruning import NAME, draw_inputs, draw_weight, find_lowest, make_context, mask_pattern
from tests.support.runs import make_settings, run
from tests.support.slow import rarely

examples = settings(max_examples=40, deadline=None)
seeds, widths, amounts = st.integers(0, 10**6), st.integers(1, 30), st.floats(0, 1)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def no_warning_was_given() -> None:
    calibration_warnings.given.clear()


def rank(weight: Tensor, inputs: Tensor) -> Tensor:
    """|w_ij| · ‖x_j‖₂ in float64."""
    return weight.double().abs() * inputs.double().square().sum(0).sqrt()


def zero(weight: Tensor, mask: Tensor) -> Tensor:
    return weight.masked_fill(mask, 0)


@given(seeds, widths, amounts, DTYPES, st.sampled_from(Scope))
@examples
def test_the_least_important_of_each_set_go(
    seed: int, width: int, amount: float, dtype: torch.dtype, scope: Scope
) -> None:
    weight, inputs = draw_weight(seed, 4, width, dtype), draw_inputs(seed, width)
    found = Wanda(scope).compress(weight, amount, make_context(weight, inputs)).dense()
    importance, gone = rank(weight, inputs), (found == 0) & (weight != 0)
    assert torch.equal(found[~gone], weight[~gone])
    sets = [(importance, found)] if scope is Scope.matrix else list(zip(importance, found, strict=True))
    for ranked, pruned in sets:
        is_gone = pruned == 0
        assert is_gone.sum() == round(amount * ranked.numel())
        if is_gone.any() and not is_gone.all():
            # float32 of the calibration data and of 16-bit weights may swap what is nearly equal.
            assert ranked[is_gone].max() <= ranked[~is_gone].min() * (1 + 1e-5)


def test_by_example() -> None:
    """‖x‖ of the three inputs is 1, 2 and 10; rows are [1, 4, 5], [3, 2, 5]."""
    weight = torch.tensor([[1.0, -2.0, 0.5], [-3.0, 1.0, 0.5]])
    context = make_context(weight, torch.tensor([[1.0, 2.0, 10.0], [0.6, 1.2, 6.0]]))
    for pruner, amount, expected in (
        (Wanda(), 1 / 3, [[0, -2.0, 0.5], [-3.0, 0, 0.5]]),
        (Wanda(Scope.matrix), 0.5, [[0, -2.0, 0.5], [0, 0, 0.5]]),
        (Wanda(pattern="1:2"), 0.5, [[0, -2.0, 0.5], [-3.0, 0, 0.5]]),
    ):
        assert pruner.compress(weight, amount, context).dense().tolist() == expected
    assert Magnitude(Scope.row).compress(weight, 1 / 3, context).dense().tolist() != [[0, -2.0, 0.5], [-3.0, 0, 0.5]]
    rows = Wanda().compress_rows(weight, [2 / 3, 1 / 3], context).dense().tolist()
    assert rows == [[0, 0, 0.5], [-3.0, 0, 0.5]]


@given(seeds, widths, st.integers(1, 4), st.integers(1, 4))
@examples
def test_pattern_keeps_the_most_important(seed: int, width: int, keep: int, more: int) -> None:
    weight, inputs = draw_weight(seed, 4, width), draw_inputs(seed, width)
    found = Wanda(pattern=f"{keep}:{keep + more}").compress(
        weight, 1 - keep / (keep + more), make_context(weight, inputs)
    )
    assert torch.equal(found.dense(), zero(weight, mask_pattern(rank(weight, inputs), keep, keep + more)))


@given(seeds, widths, st.data(), st.sampled_from(Scope))
@examples
def test_rows_lose_each_their_own_share(seed: int, width: int, data: st.DataObject, scope: Scope) -> None:
    weight, inputs = draw_weight(seed, 4, width), draw_inputs(seed, width)
    given_amounts = data.draw(st.lists(amounts, min_size=4, max_size=4))
    found = Wanda(scope).compress_rows(weight, given_amounts, make_context(weight, inputs)).dense()
    expected = weight.clone()
    for row, amount in enumerate(given_amounts):
        expected[row, find_lowest(rank(weight, inputs)[row].tolist(), round(amount * width))] = 0
    assert torch.equal(found, expected)


def test_inputs_of_equal_size_give_magnitude() -> None:
    weight = draw_weight(0, 8, 20, torch.float32)
    context = make_context(weight, torch.ones(5, 20))
    for scope in Scope:
        found, expected = (p.compress(weight, 0.4, context).dense() for p in (Wanda(scope), Magnitude(scope)))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("scope", Scope)
def test_inputs_that_are_always_zero_go_first_but_after_zeros(scope: Scope) -> None:
    weight = torch.tensor([[5.0, 1.0, 0.0, 2.0, 4.0]] * 2)
    context = make_context(weight, torch.tensor([[0.0, 1.0, 3.0, 1.0, 0.0]] * 3))
    for amount, row in ((0.2, [5, 1, 0, 2, 4]), (0.4, [5, 1, 0, 2, 0]), (0.6, [0, 1, 0, 2, 0]), (0.8, [0, 0, 0, 2, 0])):
        assert Wanda(scope).compress(weight, amount, context).dense().tolist() == [row] * 2


def test_without_tokens_it_is_magnitude(caplog: pytest.LogCaptureFixture) -> None:
    weight = draw_weight(1, 8, 20, torch.bfloat16)
    context = make_context(weight, torch.zeros(5, 20))
    for _ in range(2):
        found = Wanda().compress(weight, 0.4, context).dense()
    assert torch.equal(found, Magnitude(Scope.row).compress(weight, 0.4, context).dense())
    assert caplog.messages == [
        f"wanda: no calibration token reached `{NAME}`, so it is pruned by magnitude; raise data.prefixes"
    ]


def test_what_cannot_be_done_is_one_line() -> None:
    weight = draw_weight(2, 4, 8)
    context = make_context(weight, draw_inputs(2, 8))
    with pytest.raises(ConfigError, match=r"^`compressor\.wanda\.pattern` must be N:M with 1 <= N < M, got '4:2'; "):
        Wanda(pattern="4:2").check_options()
    with pytest.raises(PlanError, match=r"^`wanda` offers any amount in \[0, 1\] for `.*`, got 1.5; "):
        Wanda().compress(weight, 1.5, context)
    with pytest.raises(PlanError, match=r"^`wanda` takes one amount per matrix; give `.*` no rows"):
        Wanda(pattern="2:4").compress_rows(weight, [0.5] * 4, context)
    assert Wanda(pattern="2:4").importance(weight, context) is None
    weight[1, 2] = torch.nan
    with pytest.raises(ModelError, match=f"^weight of `{NAME}` contains NaN; every weight must be a number"):
        Wanda().compress(weight, 0.5, context)


# From end to end --------------------------------------------------------------------------------------------------

FEW = ComponentSettings(include=[r"layers\.[01]\..*(q_proj|down_proj)"])
SCHEDULES: dict[str, tuple[Schedule, Wanda]] = {
    "uniform": (Uniform(targets=[0.3, 0.5]), Wanda()),
    "uniform, 2:4": (Uniform(), Wanda(pattern="2:4")),
    "budget": (Budget(targets=[0.5], corrections=1), Wanda()),
    "budget, rows": (Budget(targets=[0.5], corrections=1, granularity=Granularity.row), Wanda()),
    "global": (GlobalThreshold(targets=[0.5]), Wanda(Scope.matrix)),
}


OFTEN = ("budget, rows",)


@pytest.mark.parametrize("case", [*OFTEN, *rarely(case for case in SCHEDULES if case not in OFTEN)])
def test_schedules_run_with_it(case: str, tmp_path: Path) -> None:
    schedule, pruner = SCHEDULES[case]
    record = run(tmp_path, make_settings(schedule, pruner, components=FEW))
    assert record.status == "done"
    treated = [component for component in record.components.values() if component.compressor == "wanda"]
    zeros = sum(component.sparsity * component.parameters for component in treated)
    assert zeros / sum(component.parameters for component in treated) == pytest.approx(0.5, abs=0.02)
