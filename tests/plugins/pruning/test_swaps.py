"""Swaps: every exchange lowers the error, the end is the best that one exchange can reach; runs from end to end."""

from itertools import pairwise
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
from compressor_plugins.pruning import swaps
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.selection import Scope
from compressor_plugins.pruning.swaps import Swaps
from compressor_plugins.pruning.wanda import Wanda
from compressor_plugins.schedules.budget.budget import Budget, Granularity
from compressor_plugins.schedules.uniform import Uniform
from tests.support.pruning import NAME, draw_inputs, draw_weight, make_context
from tests.support.runs import make_settings, run
from tests.support.slow import rarely

examples = settings(max_examples=25, deadline=None)
seeds, widths, amounts = st.integers(0, 10**6), st.integers(2, 24), st.floats(0, 1)


@pytest.fixture(autouse=True)
def no_warning_was_given() -> None:
    calibration_warnings.given.clear()


def measure_error(weight: Tensor, pruned: Tensor, hessian: Tensor) -> Tensor:
    """`[out]`: (w − ŵ) H (w − ŵ)ᵀ of every row."""
    error = weight.double() - pruned.double()
    return ((error @ hessian.double()) * error).sum(1)


def find_best_error(weight: Tensor, pruned: Tensor, hessian: Tensor, group: int) -> Tensor:
    """`[out]`: the smallest error that exchanging one pruned weight for a kept one, or nothing, can reach."""
    best = measure_error(weight, pruned, hessian)
    for row in range(len(weight)):
        changed = [
            pruned[row].index_put(
                (torch.tensor([p, u]),), torch.stack([weight[row, p], torch.zeros_like(weight[row, u])])
            )
            for p in range(weight.shape[1])
            for u in range(weight.shape[1])
            if pruned[row, p] == 0 != weight[row, p] and pruned[row, u] != 0 and (not group or p // group == u // group)
        ]
        if changed:
            errors = measure_error(weight[row].expand(len(changed), -1), torch.stack(changed), hessian)
            best[row] = torch.minimum(best[row], errors.min())
    return best


@given(seeds, widths, amounts, st.sampled_from(Scope))
@examples
def test_no_exchange_makes_the_end_better(seed: int, width: int, amount: float, scope: Scope) -> None:
    weight, context = draw_weight(seed, 3, width), make_context(draw_weight(seed, 3, width), draw_inputs(seed, width))
    hessian = context.calibration["hessian"]
    start = Wanda(scope).compress(weight, amount, context).dense()
    end = Swaps(scope, steps=1000).compress(weight, amount, context).dense()
    before, after = measure_error(weight, start, hessian), measure_error(weight, end, hessian)
    tolerance = 1e-5 * before
    assert (after <= before + tolerance).all()
    assert (after <= find_best_error(weight, end, hessian, 0) + tolerance).all()
    assert torch.equal((end == 0).sum(1), (start == 0).sum(1))
    assert torch.equal(end.where(end != 0, weight), weight)


@given(seeds, widths, st.integers(1, 3), st.integers(1, 3))
@examples
def test_a_pattern_stays_one(seed: int, width: int, keep: int, more: int) -> None:
    weight, context = draw_weight(seed, 3, width), make_context(draw_weight(seed, 3, width), draw_inputs(seed, width))
    hessian, of = context.calibration["hessian"], keep + more
    pattern, amount = f"{keep}:{of}", 1 - keep / of
    start = Wanda(pattern=pattern).compress(weight, amount, context).dense()
    end = Swaps(pattern=pattern, steps=1000).compress(weight, amount, context).dense()
    for group in range(0, width, of):
        columns = slice(group, group + of)
        assert torch.equal((end[:, columns] == 0).sum(1), (start[:, columns] == 0).sum(1))
    after = measure_error(weight, end, hessian)
    assert (after <= find_best_error(weight, end, hessian, of) + 1e-5 * measure_error(weight, start, hessian)).all()


@given(seeds, st.lists(amounts, min_size=3, max_size=3))
@examples
def test_rows_lose_each_their_own_share(seed: int, shares: list[float]) -> None:
    weight, context = draw_weight(seed, 3, 20), make_context(draw_weight(seed, 3, 20), draw_inputs(seed, 20))
    found = Swaps().compress_rows(weight, shares, context).dense()
    assert (found == 0).sum(1).tolist() == [round(share * 20) for share in shares]
    for row, share in enumerate(shares):
        alone = Swaps().compress(weight[row, None], share, context).dense()
        assert torch.equal(found[row, None], alone)


def test_more_steps_are_never_worse() -> None:
    """Two inputs that are nearly opposite: to prune both at once costs nearly nothing, which Wanda does not see."""
    inputs = torch.tensor([[1.0, -1.0, 0.0], [1.0, -0.99, 0.1], [-1.0, 1.0, 0.5]])
    weight = torch.tensor([[2.0, 2.0, 1.0]], dtype=torch.float64)
    context = make_context(weight, inputs)
    assert Wanda().compress(weight, 2 / 3, context).dense().tolist() == [[2, 0, 0]]
    assert Swaps(steps=1).compress(weight, 2 / 3, context).dense().tolist() == [[0, 0, 1]]
    weight, context = draw_weight(1, 6, 40), make_context(draw_weight(1, 6, 40), draw_inputs(1, 40))
    errors = [
        measure_error(weight, Swaps(steps=steps).compress(weight, 0.5, context).dense(), context.calibration["hessian"])
        for steps in (1, 2, 3, 5, 8, 100)
    ]
    assert all((after <= before * (1 + 1e-6)).all() for before, after in pairwise(errors))
    assert errors[-1].sum() < errors[0].sum()


def test_rows_in_several_chunks_and_fewer_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, context = draw_weight(2, 6, 30), make_context(draw_weight(2, 6, 30), draw_inputs(2, 30))
    hessian = context.calibration["hessian"]
    whole = Swaps().compress(weight, 0.5, context).dense()
    monkeypatch.setattr(swaps, "CHUNK", 2 * swaps.CANDIDATES**2)
    assert torch.equal(Swaps().compress(weight, 0.5, context).dense(), whole)
    monkeypatch.setattr(swaps, "CANDIDATES", 4)
    start = Wanda().compress(weight, 0.5, context).dense()
    few = measure_error(weight, Swaps().compress(weight, 0.5, context).dense(), hessian)
    assert (few <= measure_error(weight, start, hessian)).all()
    assert (few < measure_error(weight, start, hessian)).any()


def test_weights_that_were_zero_stay_pruned() -> None:
    weight, inputs = draw_weight(3, 4, 20), draw_inputs(3, 20)
    weight[:, ::3] = 0
    found = Swaps(Scope.row).compress(weight, 0.6, make_context(weight, inputs)).dense()
    assert (found == 0).sum(1).tolist() == [12] * 4
    assert (found[:, ::3] == 0).all()


def test_without_tokens_it_is_magnitude(caplog: pytest.LogCaptureFixture) -> None:
    weight = draw_weight(1, 8, 20, torch.bfloat16)
    found = Swaps().compress(weight, 0.4, make_context(weight, torch.zeros(5, 20))).dense()
    assert torch.equal(
        found, Magnitude(Scope.row).compress(weight, 0.4, make_context(weight, torch.zeros(5, 20))).dense()
    )
    assert caplog.messages == [
        f"swaps: no calibration token reached `{NAME}`, so it is pruned by magnitude; raise data.prefixes"
    ]


def test_what_cannot_be_done_is_one_line() -> None:
    weight = draw_weight(2, 4, 8)
    context = make_context(weight, draw_inputs(2, 8))
    with pytest.raises(ConfigError, match=r"^`compressor\.swaps\.steps` must be at least 1, got 0; "):
        Swaps(steps=0).check_options()
    with pytest.raises(ConfigError, match=r"^`compressor\.swaps\.pattern` must be N:M with 1 <= N < M, got '4:2'; "):
        Swaps(pattern="4:2").check_options()
    with pytest.raises(PlanError, match=r"^`swaps` offers any amount in \[0, 1\] for `.*`, got 1.5; "):
        Swaps().compress(weight, 1.5, context)
    weight[1, 2] = torch.inf
    with pytest.raises(ModelError, match=f"^weight of `{NAME}` contains NaN or infinity"):
        Swaps().compress(weight, 0.5, context)


# From end to end --------------------------------------------------------------------------------------------------

FEW = ComponentSettings(include=[r"layers\.[01]\..*(q_proj|down_proj)"])
SCHEDULES: dict[str, tuple[Schedule, Swaps]] = {
    "uniform, 2:4": (Uniform(), Swaps(pattern="2:4")),
    "uniform, matrix": (Uniform(targets=[0.3, 0.5]), Swaps(Scope.matrix)),
    "budget, rows": (Budget(targets=[0.5], corrections=1, granularity=Granularity.row), Swaps()),
}


@pytest.mark.parametrize("case", ["uniform, 2:4", *rarely(case for case in SCHEDULES if case != "uniform, 2:4")])
def test_schedules_run_with_it(case: str, tmp_path: Path) -> None:
    schedule, pruner = SCHEDULES[case]
    record = run(tmp_path, make_settings(schedule, pruner, components=FEW))
    assert record.status == "done"
    treated = [component for component in record.components.values() if component.compressor == "swaps"]
    zeros = sum(component.sparsity * component.parameters for component in treated)
    assert zeros / sum(component.parameters for component in treated) == pytest.approx(0.5, abs=0.02)
