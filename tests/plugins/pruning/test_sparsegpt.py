"""SparseGPT against textbook OBS in float64, counts of blocks and rows, its corner cases; runs from end to end."""

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
from compressor_plugins.pruning import sparsegpt
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.selection import Scope
from compressor_plugins.pruning.sparsegpt import SparseGpt
from compressor_plugins.schedules.budget.budget import Budget, Granularity
from compressor_plugins.schedules.global_threshold import GlobalThreshold
from compressor_plugins.schedules.uniform import Uniform
from tests.support.pruning import NAME, draw_inputs, draw_weight, find_lowest, make_context, mask_pattern
from tests.support.runs import make_settings, run
from tests.support.slow import rarely

examples = settings(max_examples=30, deadline=None)
seeds, widths, amounts = st.integers(0, 10**6), st.integers(1, 24), st.floats(0, 1)


@pytest.fixture(autouse=True)
def no_warning_was_given() -> None:
    calibration_warnings.given.clear()


def damp(hessian: Tensor, damping: float) -> Tensor:
    """H + λI in float64."""
    h = hessian.double()
    return h + damping * h.diagonal().mean() * torch.eye(len(h)).double()


def measure_error(weight: Tensor, dense: Tensor, hessian: Tensor) -> Tensor:
    """`[out]`: (w − ŵ) H (w − ŵ)ᵀ of every row."""
    error = weight.double() - dense.double()
    return ((error @ hessian.double()) * error).sum(1)


def choose_by_hand(importance: Tensor, pruner: SparseGpt, counts: list[int]) -> Tensor:
    """True at the least important of a group of columns; `counts` are those of the rows, or of the whole group."""
    if pruner.pattern:
        keep, of = map(int, pruner.pattern.split(":"))
        return mask_pattern(importance, keep, of)
    lines = importance.flatten()[None] if len(counts) == 1 else importance
    mask = torch.zeros_like(lines, dtype=torch.bool)
    for line, values, count in zip(mask, lines.tolist(), counts, strict=True):
        line[find_lowest(values, count)] = True
    return mask.view(importance.shape)


def prune_by_hand(weight: Tensor, hessian: Tensor, pruner: SparseGpt, given_amounts: list[float]) -> Tensor:
    """Textbook OBS, column by column: the inverse of H of the columns that are left gives importance and updates.

    w_j² / [H⁻¹]_jj is the error of pruning column j, −(w_j / [H⁻¹]_jj) [H⁻¹]_j: the update of the columns that are
    left. One amount is that of the matrix, several are those of the rows.
    """
    w, damped, width = weight.double().clone(), damp(hessian, pruner.damping), weight.shape[1]
    group = int(pruner.pattern.split(":")[1]) if pruner.pattern else pruner.block
    sizes = torch.tensor([1 / torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(width)])
    mask = torch.zeros_like(w, dtype=torch.bool)
    scale = len(w) if len(given_amounts) == 1 else 1
    for j in range(width):
        if j % group == 0:
            end = min(j + group, width)
            counts = [round(a * scale * end) - round(a * scale * j) for a in given_amounts]
            mask[:, j:end] = choose_by_hand(w[:, j:end] ** 2 * sizes[j:end], pruner, counts)
        inverse = torch.linalg.inv(damped[j:, j:])
        for row in mask[:, j].nonzero().flatten():
            w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
            w[row, j] = 0
    return w


@given(seeds, widths, amounts, st.integers(1, 30), st.sampled_from([0.01, 0.3]), st.sampled_from(Scope))
@examples
def test_weights_are_those_of_textbook_obs(
    seed: int, width: int, amount: float, block: int, damping: float, scope: Scope
) -> None:
    weight, inputs = draw_weight(seed, 4, width), draw_inputs(seed, width)
    pruner, context = SparseGpt(scope, block=block, damping=damping), make_context(weight, inputs)
    found = pruner.compress(weight, amount, context).dense()
    given_amounts = [amount] if scope is Scope.matrix else [amount] * 4
    expected = prune_by_hand(weight, context.calibration["hessian"], pruner, given_amounts)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@given(seeds, widths, st.data(), st.integers(1, 30), st.sampled_from(Scope))
@examples
def test_rows_lose_each_their_own_share(seed: int, width: int, data: st.DataObject, block: int, scope: Scope) -> None:
    weight, inputs = draw_weight(seed, 4, width), draw_inputs(seed, width)
    given_amounts = data.draw(st.lists(amounts, min_size=4, max_size=4))
    pruner, context = SparseGpt(scope, block=block), make_context(weight, inputs)
    found = pruner.compress_rows(weight, given_amounts, context).dense()
    assert (found == 0).sum(1).tolist() == [round(amount * width) for amount in given_amounts]
    expected = prune_by_hand(weight, context.calibration["hessian"], pruner, given_amounts)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@given(seeds, widths, st.integers(1, 4), st.integers(1, 4), st.integers(1, 30))
@examples
def test_patterns_are_chosen_group_by_group(seed: int, width: int, keep: int, more: int, block: int) -> None:
    """Each group when its first column is reached, whatever the `block`."""
    weight, inputs = draw_weight(seed, 4, width), draw_inputs(seed, width)
    pruner, context = SparseGpt(pattern=f"{keep}:{keep + more}", block=block), make_context(weight, inputs)
    found = pruner.compress(weight, 1 - keep / (keep + more), context).dense()
    expected = prune_by_hand(weight, context.calibration["hessian"], pruner, [])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("amount", [0.3, 0.5, 0.8])
def test_the_error_is_below_that_of_the_mask_alone(dtype: torch.dtype, amount: float) -> None:
    weight, inputs = draw_weight(0, 32, 75, dtype), draw_inputs(0, 75)
    context, before = make_context(weight, inputs), weight.clone()
    found = SparseGpt(block=16).compress(weight, amount, context).dense()
    assert found.dtype is dtype and torch.equal(weight, before)
    assert (found == 0).sum() == round(amount * weight.numel())
    hessian = context.calibration["hessian"]
    for other in (weight.masked_fill(found == 0, 0), Magnitude().compress(weight, amount, context).dense()):
        ours, theirs = (measure_error(weight, dense, hessian).sum() for dense in (found, other))
        assert ours < 0.9 * theirs


def test_inputs_that_have_nothing_in_common_leave_weights_alone() -> None:
    """With a diagonal H there is nothing to compensate, and |w_j| √H_jj decides."""
    weight = draw_weight(1, 8, 20, torch.float32)
    context = make_context(weight, torch.diag(torch.arange(1.0, 21.0)))
    found = SparseGpt(damping=1e-6).compress(weight, 0.5, context).dense()
    importance = weight.abs() * torch.arange(1.0, 21.0)
    expected = weight.clone().flatten()
    expected[find_lowest(importance.flatten().tolist(), 80)] = 0
    assert torch.equal(found, expected.view(8, 20))


@given(seeds, st.integers(1, 24), amounts, st.integers(1, 30))
@examples
def test_zeros_stay_and_count(seed: int, width: int, amount: float, block: int) -> None:
    """A block has at least its count of zeros, and exactly that many if it had no more."""
    weight, inputs = draw_weight(seed, 4, width).relu(), draw_inputs(seed, width)
    found = SparseGpt(block=block).compress(weight, amount, make_context(weight, inputs)).dense()
    assert not found[weight == 0].any()
    for start in range(0, width, block):
        end = min(start + block, width)
        count = round(amount * 4 * end) - round(amount * 4 * start)
        assert (found[:, start:end] == 0).sum() == max(count, int((weight[:, start:end] == 0).sum()))


def test_rows_that_lose_nothing_keep_their_bits() -> None:
    weight = draw_weight(3, 3, 40, torch.bfloat16)
    weight[0, 3] = -0.0
    found = SparseGpt().compress_rows(weight, [0.0, 0.5, 0.0], make_context(weight, draw_inputs(3, 40))).dense()
    assert torch.equal(found[::2].view(torch.int16), weight[::2].view(torch.int16))
    assert (found[1] == 0).sum() == 20


def test_columns_without_input_go_first_and_are_not_compensated() -> None:
    weight, inputs = draw_weight(4, 8, 40, torch.float32), draw_inputs(4, 40)
    inputs[:, [0, 7, 39]] = 0
    context = make_context(weight, inputs)
    few = SparseGpt().compress(weight, 0.05, context).dense()
    assert (few == 0).sum() == 16 and not (few[:, [j for j in range(40) if j not in (0, 7, 39)]] == 0).any()
    kept = few[:, [0, 7, 39]] != 0
    assert torch.equal(few[:, [0, 7, 39]][kept], weight[:, [0, 7, 39]][kept])
    many = SparseGpt().compress(weight, 0.5, context).dense()
    assert not many[:, [0, 7, 39]].any() and (many == 0).sum() == 160


def test_without_tokens_it_is_magnitude(caplog: pytest.LogCaptureFixture) -> None:
    weight = draw_weight(5, 8, 40, torch.bfloat16)
    context = make_context(weight, torch.zeros(5, 40))
    for scope in Scope:
        found = SparseGpt(scope).compress(weight, 0.4, context).dense()
        assert torch.equal(found, Magnitude(scope).compress(weight, 0.4, context).dense())
    assert caplog.messages == [
        f"sparsegpt: no calibration token reached `{NAME}`, so it is pruned by magnitude; raise data.prefixes"
    ]


def test_few_tokens_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    weight, inputs = draw_weight(6, 8, 40), draw_inputs(6, 40, tokens=5)
    for _ in range(2):
        found = SparseGpt().compress(weight, 0.5, make_context(weight, inputs)).dense()
    assert found.isfinite().all()
    (message,) = caplog.messages
    assert message.startswith(f"sparsegpt: `{NAME}` has only 5 calibration tokens for 40 inputs, so damping has")


def test_a_hessian_that_is_not_positive_definite_gets_more_damping(caplog: pytest.LogCaptureFixture) -> None:
    """As rounding may leave one: damping 10⁻⁶ is not enough for an eigenvalue of −0.05."""
    weight = draw_weight(7, 8, 40)
    context = make_context(weight, draw_inputs(7, 40))
    hessian = torch.eye(40)
    hessian[0, 1] = hessian[1, 0] = 1.05
    context.calibration["hessian"].copy_(hessian)
    for _ in range(2):
        found = SparseGpt(damping=1e-6).compress(weight, 0.5, context).dense()
    assert found.isfinite().all()
    assert caplog.messages == [
        f"sparsegpt: the Hessian of `{NAME}` is not positive definite with damping 1e-06; 0.1 is used"
    ]


def test_sizes_of_inputs_do_not_matter() -> None:
    weight, inputs = draw_weight(8, 8, 40, torch.float32), draw_inputs(8, 40)
    usual, *others = (
        SparseGpt().compress(weight, 0.5, make_context(weight, inputs * size)).dense() for size in (1, 2**-20, 2**20)
    )
    assert all(torch.equal(other, usual) for other in others)


def test_many_amounts_share_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, factors = draw_weight(9, 8, 40), []
    original, target = sparsegpt.factor_hessian, "compressor_plugins.pruning.sparsegpt.factor_hessian"
    monkeypatch.setattr(target, lambda *a: factors.append(1) or original(*a))
    found = list(SparseGpt().compress_each(weight, [0.2, 0.5, 0.7], make_context(weight, draw_inputs(9, 40))))
    assert len(factors) == 1 and [int((part.dense() == 0).sum()) for part in found] == [64, 160, 224]


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (SparseGpt(block=0), "`compressor.sparsegpt.block` must be at least 1, got 0; give for example 128"),
        (SparseGpt(damping=0.0), "`compressor.sparsegpt.damping` must be positive and finite, got 0.0; give for"),
        (SparseGpt(damping=float("nan")), "`compressor.sparsegpt.damping` must be positive and finite, got nan; give"),
        (SparseGpt(pattern="4:2"), "`compressor.sparsegpt.pattern` must be N:M with 1 <= N < M, got '4:2'; give for"),
    ],
)
def test_options_are_checked(pruner: SparseGpt, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pruner.check_options()
    assert str(caught.value).startswith(message) and str(caught.value).isprintable()


def test_what_cannot_be_done_is_one_line() -> None:
    weight = draw_weight(10, 4, 8)
    context = make_context(weight, draw_inputs(10, 8))
    with pytest.raises(PlanError, match=r"^`sparsegpt` offers any amount in \[0, 1\] for `.*`, got 1.5; "):
        SparseGpt().compress(weight, 1.5, context)
    with pytest.raises(PlanError, match=r"^`sparsegpt` takes one amount per matrix; give `.*` no rows"):
        SparseGpt(pattern="2:4").compress_rows(weight, [0.5] * 4, context)
    with pytest.raises(ConfigError, match="compressor `sparsegpt` does not rank single weights"):
        GlobalThreshold([0.5]).check_options({"sparsegpt": SparseGpt()}, {})
    for value in (torch.nan, torch.inf):
        weight[1, 2] = value
        with pytest.raises(ModelError, match=f"^weight of `{NAME}` contains NaN or infinity; all weights must be"):
            SparseGpt().compress(weight, 0.5, context)


# From end to end --------------------------------------------------------------------------------------------------

FEW = ComponentSettings(include=[r"layers\.[01]\..*(q_proj|down_proj)"])
SCHEDULES: dict[str, tuple[Schedule, SparseGpt]] = {
    "uniform": (Uniform(targets=[0.3, 0.5]), SparseGpt()),
    "uniform, 2:4": (Uniform(), SparseGpt(pattern="2:4")),
    "budget": (Budget(targets=[0.5], corrections=1), SparseGpt()),
    "budget, rows": (Budget(targets=[0.5], corrections=1, granularity=Granularity.row), SparseGpt()),
}


OFTEN = ("uniform, 2:4",)


@pytest.mark.parametrize("case", [*OFTEN, *rarely(case for case in SCHEDULES if case not in OFTEN)])
def test_schedules_run_with_it(case: str, tmp_path: Path) -> None:
    schedule, pruner = SCHEDULES[case]
    record = run(tmp_path, make_settings(schedule, pruner, components=FEW))
    assert record.status == "done"
    treated = [component for component in record.components.values() if component.compressor == "sparsegpt"]
    zeros = sum(component.sparsity * component.parameters for component in treated)
    assert zeros / sum(component.parameters for component in treated) == pytest.approx(0.5, abs=0.02)
