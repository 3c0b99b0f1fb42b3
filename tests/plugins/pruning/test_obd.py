"""Optimal Brain Damage against its formula, weights without gradient, runs from end to end."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.contracts import Component, Context, Schedule
from compressor.errors import ConfigError, ModelError, PlanError
from compressor.settings import ComponentSettings
from compressor_plugins import calibration_warnings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.obd import Obd
from compressor_plugins.pruning.selection import Scope
from compressor_plugins.schedules.budget.budget import Budget, Granularity
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.uniform import Uniform
from tests.support.pruning import NAME, draw_weight, find_lowest, mask_pattern
from tests.support.runs import make_settings, run
from tests.support.slow import rarely

examples = settings(max_examples=40, deadline=None)
seeds, widths, amounts = st.integers(0, 10**6), st.integers(1, 30), st.floats(0, 1)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def no_warning_was_given() -> None:
    calibration_warnings.given.clear()


def draw_fisher(seed: int, width: int) -> Tensor:
    """`[4, in]`: numbers of very different sizes, as those of a model are."""
    return torch.exp(5 * torch.randn(4, width, generator=torch.Generator().manual_seed(seed)) - 20)


def make_context(weight: Tensor, fisher: Tensor) -> Context:
    out, width = weight.shape
    component = Component(NAME, "up", 0, (out, width), weight.element_size() * 8)
    return Context(component, calibration={"fisher_diagonal": fisher})


def find_saliency(weight: Tensor, fisher: Tensor) -> Tensor:
    """w² F in float64."""
    return weight.double().square() * fisher.double()


@given(seeds, widths, amounts, DTYPES, st.sampled_from(Scope))
@examples
def test_the_smallest_saliencies_of_each_set_go(
    seed: int, width: int, amount: float, dtype: torch.dtype, scope: Scope
) -> None:
    weight, fisher = draw_weight(seed, 4, width, dtype), draw_fisher(seed, width)
    found = Obd(scope).compress(weight, amount, make_context(weight, fisher)).dense()
    saliency, gone = find_saliency(weight, fisher), (found == 0) & (weight != 0)
    assert torch.equal(found[~gone], weight[~gone])
    sets = [(saliency, found)] if scope is Scope.matrix else list(zip(saliency, found, strict=True))
    for ranked, pruned in sets:
        is_gone = pruned == 0
        assert is_gone.sum() == round(amount * ranked.numel())
        if is_gone.any() and not is_gone.all():
            assert ranked[is_gone].max() <= ranked[~is_gone].min() * (1 + 1e-5)  # ranks are in float32


def test_by_example() -> None:
    """Saliencies are [4, 1, 16] and [9, 8, 2]."""
    weight = torch.tensor([[1.0, -1.0, 2.0], [-3.0, 2.0, 1.0]])
    context = make_context(weight, torch.tensor([[4.0, 1.0, 4.0], [1.0, 2.0, 2.0]]))
    for pruner, amount, expected in (
        (Obd(), 0.5, [[0, 0, 2.0], [-3.0, 2.0, 0]]),
        (Obd(Scope.row), 2 / 3, [[0, 0, 2.0], [-3.0, 0, 0]]),
        (Obd(pattern="1:2"), 0.5, [[1.0, 0, 2.0], [-3.0, 0, 1.0]]),
    ):
        assert pruner.compress(weight, amount, context).dense().tolist() == expected
    assert Obd().compress_rows(weight, [1 / 3, 2 / 3], context).dense().tolist() == [[1.0, 0, 2.0], [-3.0, 0, 0]]
    importance = Obd().importance(weight, context)
    assert importance is not None
    torch.testing.assert_close(importance.square(), torch.tensor([[4.0, 1.0, 16.0], [9.0, 8.0, 2.0]]))


@given(seeds, widths, st.integers(1, 4), st.integers(1, 4))
@examples
def test_pattern_keeps_the_most_salient(seed: int, width: int, keep: int, more: int) -> None:
    weight, fisher = draw_weight(seed, 4, width), draw_fisher(seed, width)
    pruner = Obd(pattern=f"{keep}:{keep + more}")
    found = pruner.compress(weight, 1 - keep / (keep + more), make_context(weight, fisher)).dense()
    gone = mask_pattern(find_saliency(weight, fisher), keep, keep + more)
    assert torch.equal(found, weight.masked_fill(gone, 0))


@given(seeds, widths, st.data(), st.sampled_from(Scope))
@examples
def test_rows_lose_each_their_own_share(seed: int, width: int, data: st.DataObject, scope: Scope) -> None:
    weight, fisher = draw_weight(seed, 4, width), draw_fisher(seed, width)
    given_amounts = data.draw(st.lists(amounts, min_size=4, max_size=4))
    found = Obd(scope).compress_rows(weight, given_amounts, make_context(weight, fisher)).dense()
    expected = weight.clone()
    for row, amount in enumerate(given_amounts):
        expected[row, find_lowest(find_saliency(weight, fisher)[row].tolist(), round(amount * width))] = 0
    assert torch.equal(found, expected)


def test_many_amounts_are_those_of_each() -> None:
    weight, fisher = draw_weight(0, 4, 30), draw_fisher(0, 30)
    context, chosen = make_context(weight, fisher), [0.0, 0.3, 0.5, 1.0]
    for scope in Scope:
        for amount, found in zip(chosen, Obd(scope).compress_each(weight, chosen, context), strict=True):
            assert torch.equal(found.dense(), Obd(scope).compress(weight, amount, context).dense())


def test_weights_without_gradient_go_first_but_after_zeros() -> None:
    weight = torch.tensor([[5.0, 1.0, 0.0, 2.0, 4.0]] * 2)
    context = make_context(weight, torch.tensor([[0.0, 1e-20, 3.0, 1e-20, 0.0]] * 2))
    for amount, row in ((0.2, [5, 1, 0, 2, 4]), (0.4, [5, 1, 0, 2, 0]), (0.6, [0, 1, 0, 2, 0]), (0.8, [0, 0, 0, 2, 0])):
        assert Obd().compress(weight, amount, context).dense().tolist() == [row] * 2


def test_without_any_gradient_it_is_magnitude(caplog: pytest.LogCaptureFixture) -> None:
    weight = draw_weight(1, 8, 20, torch.bfloat16)
    context = make_context(weight, torch.zeros(8, 20))
    for scope in Scope:
        found = Obd(scope).compress(weight, 0.4, context).dense()
        assert torch.equal(found, Magnitude(scope).compress(weight, 0.4, context).dense())
    assert caplog.messages == [
        f"obd: `{NAME}` has no gradient on the calibration texts, so it is pruned by magnitude; raise data.prefixes"
    ]


def test_what_cannot_be_done_is_one_line() -> None:
    weight = draw_weight(2, 4, 8)
    context = make_context(weight, draw_fisher(2, 8))
    with pytest.raises(ConfigError, match=r"^`compressor\.obd\.pattern` must be N:M with 1 <= N < M, got '4:2'; "):
        Obd(pattern="4:2").check_options()
    with pytest.raises(PlanError, match=r"^`obd` offers any amount in \[0, 1\] for `.*`, got 1.5; "):
        Obd().compress(weight, 1.5, context)
    with pytest.raises(PlanError, match=r"^`obd` takes one amount per matrix; give `.*` no rows"):
        Obd(pattern="2:4").compress_rows(weight, [0.5] * 4, context)
    assert Obd(pattern="2:4").importance(weight, context) is None
    assert Obd(pattern="2:4").list_unused() == {"scope": "pattern"}
    weight[1, 2] = torch.nan
    with pytest.raises(ModelError, match=f"^weight of `{NAME}` contains NaN; every weight must be a number"):
        Obd().compress(weight, 0.5, context)


# From end to end --------------------------------------------------------------------------------------------------

FEW = ComponentSettings(include=[r"layers\.[01]\..*(q_proj|down_proj)"])
SCHEDULES: dict[str, tuple[Schedule, Obd]] = {
    "uniform": (Uniform(targets=[0.3, 0.5]), Obd()),
    "uniform, 2:4": (Uniform(), Obd(pattern="2:4")),
    "budget": (Budget(targets=[0.5], corrections=1), Obd()),
    "budget, rows": (Budget(targets=[0.5], corrections=1, granularity=Granularity.row), Obd()),
    "global": (GlobalThreshold(targets=[0.5]), Obd()),
}


OFTEN = ("global",)


@pytest.mark.parametrize("case", [*OFTEN, *rarely(case for case in SCHEDULES if case not in OFTEN)])
def test_schedules_run_with_it(case: str, tmp_path: Path) -> None:
    schedule, pruner = SCHEDULES[case]
    record = run(tmp_path, make_settings(schedule, pruner, components=FEW))
    assert record.status == "done"
    treated = [component for component in record.components.values() if component.compressor == "obd"]
    zeros = sum(component.sparsity * component.parameters for component in treated)
    assert zeros / sum(component.parameters for component in treated) == pytest.approx(0.5, abs=0.02)
